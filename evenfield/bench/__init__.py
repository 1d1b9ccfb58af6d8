"""Protocols, and grids of methods x adapters x regimes x seeds that resume."""
