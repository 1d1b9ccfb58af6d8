"""Adaptation to a new plate without labels, one rule a file: `ADAPTERS[name]`."""

from evenfield.adapt.base import ADAPTERS, Adapted, Adapter

__all__ = ["ADAPTERS", "Adapted", "Adapter"]
