"""Evenfield makes models of high-content microscopy images hold on the next batch.

The verbs are in `evenfield.api`; importing the package itself costs nothing.
"""

__version__ = "0.1.0"
