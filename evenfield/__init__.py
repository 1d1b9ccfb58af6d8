"""Evenfield makes models of high-content microscopy images hold on the next batch."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_DOORS = (
    "doctor", "simulate", "ingest", "audit", "train", "adapt", "predict", "evaluate", "bench",
    "report", "results", "demo", "open_screen",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Resolve the verbs on first use, so that `import evenfield` costs nothing."""
    if name in _DOORS:
        return getattr(import_module("evenfield.api"), name)
    raise AttributeError(f"module 'evenfield' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOORS])
