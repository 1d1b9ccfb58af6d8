"""The parts of the simulator: configuration, layout, effects, cells, drawing, optics."""
