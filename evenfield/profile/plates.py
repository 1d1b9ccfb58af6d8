"""A trained model at the plates of a screen: who reads, who adapts, whose images they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from evenfield.adapt.base import ADAPTERS, Adapter
from evenfield.config import from_dict, to_dict
from evenfield.data.dataset import Reader
from evenfield.data.sampler import ContextRows
from evenfield.data.split import Units, units
from evenfield.data.store import Screen
from evenfield.records import digest
from evenfield.train.checkpoint import Model


def make_adapter(name: str, options: Mapping[str, Any] | None = None) -> Adapter:
    """An adapter by name.

    Raises:
        InputError: The adapter or one of its settings does not exist.
    """
    cls = ADAPTERS[name]
    return cls(from_dict(cls.Config, dict(options or {}), where=f"{name}."))


def choose(model: Model, adapter: str, options: Mapping[str, Any]) -> Adapter:
    """The adapter by name; `native` is the one that the method was trained for."""
    return make_adapter(model.method.native if adapter == "native" else adapter, options)


def reader_for(model: Model, screen: Screen) -> Reader:
    """What reads a screen for a model.

    Raises:
        InputError: The screen does not fit the model.
    """
    model.check(screen)
    column = model.config.split.column if screen.fingerprint == model.screen else None
    coded = units(screen.manifest, model.roles, classes=model.classes, column=column)
    device = next(model.method.parameters()).device
    return Reader(screen, coded, model.config.view, model.normaliser, device)


def model_id(model: Model) -> str:
    """A short hash of the method, the training screen and the weights' sum."""
    first = next(iter(model.method.predictor.parameters())).detach().float().cpu()
    return digest([to_dict(model.config)["method"], model.screen, f"{float(first.sum()):.9g}"])


def plates(
    screen: Screen, model: Model, coded: Units, *, lone_controls: bool = False
) -> Iterator[ContextRows]:
    """Every context of a screen: its images that are neither control nor empty, its controls.

    Args:
        screen: The screen.
        model: Whose roles count.
        coded: The screen's manifest in codes.
        lone_controls: Whether contexts without a perturbed image are among them.
    """
    kind = screen.manifest[model.roles.control]
    wanted = ~kind.isin(["negcon", "empty"]).to_numpy()
    every = np.arange(len(wanted)) if lone_controls else np.flatnonzero(wanted)
    for name, rows in coded.by_context(every).items():
        yield ContextRows(name=name, perturbed=rows[wanted[rows]], controls=coded.controls_of(name))


def shown(context: ContextRows, adapter: Adapter) -> ContextRows:
    """What an adapter reads of a context: a slide of 30,000 images is not loaded for nothing."""
    if adapter.uses_perturbed:
        return context
    controls = context.controls if adapter.uses_controls else context.controls[:0]
    return replace(context, perturbed=context.perturbed[:0], controls=controls)
