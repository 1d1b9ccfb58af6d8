"""A trained model at the plates of a screen: who reads, who adapts, whose images they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evenfield.adapt.base import ADAPTERS, Adapter
from evenfield.config import from_dict, to_dict
from evenfield.data.dataset import Reader
from evenfield.data.sampler import ContextRows
from evenfield.data.split import Units, units
from evenfield.data.store import Screen
from evenfield.errors import InputError
from evenfield.records import digest, file_sha256
from evenfield.train import checkpoint
from evenfield.train.checkpoint import Model

INDEX = "adapted.json"
"""What a folder of adapted states says about them."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """The adapted states that `adapt` or `online` wrote, one a plate.

    Attributes:
        folder: Where they lie.
        index: What `adapted.json` says.
        rule: The adapter that restores them.
    """

    folder: Path
    index: dict[str, Any]
    rule: Adapter

    def of_these(self, contexts: list[ContextRows]) -> list[ContextRows]:
        """The plates that are read: a stream's need not be all of a screen's."""
        if "online" not in self.index:
            return contexts
        return [context for context in contexts if context.name in self.index["plates"]]

    def state(self, plate: str) -> dict[str, Tensor]:
        """The adapted state of a plate.

        Raises:
            InputError: It has none.
        """
        if plate not in self.index["plates"]:
            raise InputError(
                f"{self.folder} has no state of plate {plate!r}",
                fix="run `evenfield adapt` on this screen",
            )
        return checkpoint.load(self.folder / self.index["plates"][plate]["file"])["state"]

    def about(self) -> str:
        """A checksum of the index: other states, other checksum."""
        return file_sha256(self.folder / INDEX)


def open_index(out: Path, about: Mapping[str, Any], *, by: str) -> dict[str, Any]:
    """What a folder of adapted states says; for a new one, that it holds the state of no plate.

    Args:
        out: The folder; it need not exist.
        about: What its states are made from.
        by: What they depend on beside model and screen, for the message.

    Raises:
        InputError: It holds states of something else, or something else.
    """
    path = out / INDEX
    if path.exists():
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {key: index.get(key) for key in about} != about:
            raise InputError(
                f"{out} holds states of another model, screen or {by}", fix="choose another folder"
            )
        return index
    if out.exists() and any(out.iterdir()):
        raise InputError(
            f"the output folder {out} exists and holds something else", fix="choose another folder"
        )
    return {**about, "plates": {}}


def open_states(folder: Path, model: Model) -> States:
    """Adapted states of a model.

    Raises:
        InputError: There are none, or they are of another model.
    """
    path = folder / INDEX
    if not path.exists():
        raise InputError(
            f"{folder} holds no adapted states",
            fix="give a folder that `evenfield adapt` or `evenfield online` wrote",
        )
    index = json.loads(path.read_text(encoding="utf-8"))
    if index["model"] != model_id(model):
        raise InputError(
            f"{folder} was adapted from another model", fix="adapt again with this run"
        )
    rule = make_adapter(index["adapter"], index["options"])
    return States(folder=folder, index=index, rule=rule)
