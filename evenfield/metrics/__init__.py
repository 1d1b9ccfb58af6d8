"""Measures: arrays in, numbers out; each states its direction, its bounds and its chance level."""
