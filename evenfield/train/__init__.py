"""The loop owns precision, accumulation, devices and checkpoints; methods own the loss."""
