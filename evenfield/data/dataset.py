"""Rows of a screen to batches on a device: read as a batch, kept integer until it gets there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from evenfield.config import View
from evenfield.data.sampler import ContextRows, Sampler
from evenfield.data.split import Units
from evenfield.data.store import Screen
from evenfield.data.transforms import Normaliser, prepare, read
from evenfield.seeds import derive
from evenfield.types import Batch, Context


class Reader:
    """Reads batches and contexts of one screen.

    Args:
        screen: The screen.
        coded: Its manifest in codes.
        view: What the network may see.
        normaliser: Fitted on the training rows of the run.
        device: Where batches go.
    """

    def __init__(
        self, screen: Screen, coded: Units, view: View, normaliser: Normaliser, device: torch.device
    ) -> None:
        self.screen, self.coded, self.view = screen, coded, view
        self.normaliser, self.device = normaliser, device

    def images(self, rows: np.ndarray, *, seed: int = 0, train: bool = False) -> Tensor:
        """Normalised images (n, c, h, w), channels last; random views in training."""
        raw = torch.from_numpy(read(self.screen.pixels, rows, self.view, seed=seed, train=train))
        scale, shift = self.normaliser.affine(self.screen, rows)
        return prepare(
            raw.to(self.device, non_blocking=True),
            torch.from_numpy(scale).to(self.device),
            torch.from_numpy(shift).to(self.device),
            self.view,
            seed=seed,
            train=train,
        )

    def batch(self, rows: np.ndarray, *, seed: int = 0, train: bool = False) -> Batch:
        """A batch of rows; the labels of controls are unknown by construction of `Units`."""

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

        return Batch(
            image=self.images(rows, seed=seed, train=train),
            label=tensor(self.coded.label[rows]),
            is_control=tensor(self.coded.is_control[rows]),
            context=tensor(self.coded.context[rows]),
            domain=tensor(self.coded.domain[rows]),
            row=tensor(np.asarray(rows, dtype=np.int64)),
            seed=seed,
        )

    def context(self, rows: ContextRows) -> Context:
        """The unlabelled images of a context: perturbed first, then controls."""
        both = np.concatenate([rows.perturbed, rows.controls])
        is_control = np.arange(len(both)) >= len(rows.perturbed)
        return Context(
            image=self.images(both),
            is_control=torch.from_numpy(is_control).to(self.device),
            name=rows.name,
        )


def batches(
    reader: Reader, sampler: Sampler, *, seed: int, start: int = 0, every: int = 1
) -> Iterator[Batch]:
    """Training batches from pass `start` on, without end; the next one is read while one trains.

    With `every` above 1 all but each so-many-th pass is left to other processes.

    A batch depends on (seed, pass) only, so a resumed run sees what an uninterrupted one does.
    """

    def load(number: int) -> Batch:
        return reader.batch(sampler.rows(number), seed=derive(seed, "pass", number), train=True)

    with ThreadPoolExecutor(max_workers=1) as ahead:
        pending = ahead.submit(load, start)
        number = start
        while True:
            batch = pending.result()
            number += every
            pending = ahead.submit(load, number)
            yield batch
