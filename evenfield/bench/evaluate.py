"""Adapt to contexts and predict (labels stay out of sight); then judge (labels come in)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evenfield.adapt.base import Adapter
from evenfield.data.dataset import Reader
from evenfield.data.sampler import ContextRows
from evenfield.data.split import Units
from evenfield.errors import InputError
from evenfield.metrics.base import METRICS
from evenfield.metrics.wells import to_wells
from evenfield.nn.predictor import Predictor
from evenfield.profile.plates import shown
from evenfield.types import Context

CHUNK = 512
"""Images that are predicted in one pass."""
SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "ece")


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Log-probabilities of scored rows; a row may come up in several contexts.

    Attributes:
        row: (n,) rows of the manifest.
        log_prob: (n, k).
        context: (n,) number of the context in which the row was predicted.
    """

    row: np.ndarray
    log_prob: np.ndarray
    context: np.ndarray

    def where(self, keep: np.ndarray) -> Predictions:
        """The predictions at a bool mask."""
        return Predictions(
            row=self.row[keep], log_prob=self.log_prob[keep], context=self.context[keep]
        )


class Images:
    """Normalised images of one unit at a time, so that many small contexts do not read again."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._place: dict[int, int] = {}
        self._images: Tensor = torch.empty(0)

    def load(self, rows: np.ndarray) -> None:
        """Keep these rows, forget the others."""
        wanted = np.unique(rows)
        self._place = {int(row): number for number, row in enumerate(wanted)}
        self._images = self._reader.images(wanted)

    def context(self, rows: ContextRows) -> Context:
        """The unlabelled images of a context whose rows are loaded."""
        both = np.concatenate([rows.perturbed, rows.controls])
        index = torch.tensor([self._place[int(row)] for row in both], dtype=torch.long)
        return Context(
            image=self._images[index.to(self._images.device)],
            is_control=(torch.arange(len(both)) >= len(rows.perturbed)).to(self._images.device),
            name=rows.name,
        )


def predict_contexts(
    predictor: Predictor, reader: Reader, contexts: Iterable[ContextRows], adapter: Adapter
) -> Predictions:
    """Adapt to each context and predict its perturbed images.

    Nothing here can see a label: the adapter gets a `Context`, which has no place for one.

    Args:
        predictor: The source model.
        reader: Of the screen that is judged.
        contexts: In any order; those of one unit should follow each other.
        adapter: The rule.
    """
    rows, outputs, numbers = [], [], []
    images = Images(reader)
    number = 0
    for group in by_unit(contexts):
        for item in group:
            numbers.append(np.full(len(item.perturbed), number))
            number += 1
        if not adapter.uses_perturbed:
            group = merged(group, adapter.uses_controls)
        seen = [shown(item, adapter) for item in group]
        images.load(
            np.concatenate([part for item in seen for part in (item.perturbed, item.controls)])
        )
        for item, context_rows in zip(group, seen, strict=True):
            context = images.context(context_rows)
            adapted = adapter.fit(predictor, context)
            parts = (
                context.perturbed.split(CHUNK)
                if adapter.uses_perturbed
                else (
                    reader.images(item.perturbed[start : start + CHUNK])
                    for start in range(0, len(item.perturbed), CHUNK)
                )
            )
            log_prob = [adapted.predict(part).float().cpu() for part in parts]
            rows.append(item.perturbed)
            outputs.append(torch.cat(log_prob).numpy())
    if not rows:
        raise InputError(
            "there is no context to predict: no unit has as many images as the regime asks for",
            fix="lower num_images",
        )
    return Predictions(
        row=np.concatenate(rows),
        log_prob=np.concatenate(outputs),
        context=np.concatenate(numbers),
    )


def merged(group: list[ContextRows], uses_controls: bool) -> list[ContextRows]:
    """Contexts of one unit that an adapter which sees no perturbed image cannot tell apart."""
    found: list[ContextRows] = []
    for item in group:
        last = found[-1] if found else None
        if last is None or (uses_controls and not np.array_equal(last.controls, item.controls)):
            found.append(item)
        else:
            found[-1] = replace(last, perturbed=np.concatenate([last.perturbed, item.perturbed]))
    return found


def by_unit(contexts: Iterable[ContextRows]) -> Iterator[list[ContextRows]]:
    """Runs of contexts of the same unit."""
    group: list[ContextRows] = []
    for item in contexts:
        if group and group[0].name != item.name:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One measured number.

    Attributes:
        metric: A name of `METRICS`.
        unit: `all`, or the name of a domain or context.
        unit_role: `all`, `domain` or `context`.
        level: `image` or `well`.
        value: The number.
        num: How many items were scored.
    """

    metric: str
    unit: str
    unit_role: str
    level: str
    value: float
    num: int


def judge(predictions: Predictions, coded: Units) -> list[Score]:
    """Score predictions against the labels: over all, by domain and by context, image and well.

    A well's probability is the mean over its images within one context.
    """
    label = coded.label[predictions.row]
    domain = np.array(coded.domains)[coded.domain[predictions.row]]
    context = np.array(coded.contexts)[coded.context[predictions.row]]
    # A well that is predicted in several contexts is a well of each of them.
    group = np.stack([coded.well[predictions.row], predictions.context], axis=1)
    _, first, well = np.unique(group, axis=0, return_index=True, return_inverse=True)
    levels = {
        "image": (predictions.log_prob, label, domain, context),
        "well": (
            to_wells(predictions.log_prob, well.ravel())[0],
            label[first],
            domain[first],
            context[first],
        ),
    }
    found: list[Score] = []
    for level, (log_prob, truth, domains, contexts) in levels.items():
        for role, names in (("all", None), ("domain", domains), ("context", contexts)):
            for unit in ("all",) if names is None else sorted(set(names)):
                keep = np.ones(len(truth), bool) if names is None else names == unit
                found.extend(
                    Score(
                        metric=name,
                        unit=str(unit),
                        unit_role=role,
                        level=level,
                        value=METRICS[name]()(log_prob[keep], truth[keep]),
                        num=int(keep.sum()),
                    )
                    for name in (SCORES if role != "context" else SCORES[:2])
                )
    return found
