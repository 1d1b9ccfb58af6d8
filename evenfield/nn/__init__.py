"""Encoders for any number of channels, and control over the statistics of their normalisation."""
