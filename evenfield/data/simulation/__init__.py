"""The simulator's parts: configuration, layout, effects, cells, drawing, optics (see `simulate`)."""
