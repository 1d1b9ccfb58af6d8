"""Profiles of images: made by a trained model, aggregated, handed on to other software."""
