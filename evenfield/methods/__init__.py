"""Training methods, one paper a file: `METHODS[name]`."""

from evenfield.methods.base import METHODS, Method

__all__ = ["METHODS", "Method"]
