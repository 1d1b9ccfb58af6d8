"""Numerical ground of the profile metrics: products in blocks, neighbours, pairs; no metric."""
