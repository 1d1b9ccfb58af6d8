"""Rows of a screen to batches on a device: read as a batch, kept integer until it gets there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from evenfield.config import View
from evenfield.data.multicrop import make_views
from evenfield.data.sampler import ContextRows, Sampler
from evenfield.data.split import Units
from evenfield.data.store import Screen
from evenfield.data.transforms import Normaliser, prepare, read
from evenfield.seeds import derive
from evenfield.types import Batch, Context, Needs


class Reader:
    """Reads batches and contexts of one screen.

    Args:
        screen: The screen.
        coded: Its manifest in codes.
        view: What the network may see.
        normaliser: Fitted on the training rows of the run.
        device: Where batches go.
        needs: What its batches are for; none asks for no views.
    """

    def __init__(
        self,
        screen: Screen,
        coded: Units,
        view: View,
        normaliser: Normaliser,
        device: torch.device,
        needs: Needs | None = None,
    ) -> None:
        self.screen, self.coded, self.view = screen, coded, view
        self.normaliser, self.device = normaliser, device
        self.needs = needs or Needs()

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

    def views(
        self, rows: np.ndarray, *, seed: int = 0, train: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Global and local views of items; every image is read once.

        Crops are random in any case, by the seed; intensities change in training only.

        Args:
            rows: (n,) rows, or (n, 2) rows of pairs.
            seed: Equal seeds give equal bits.
            train: Whether intensities change.
        """
        flat = np.ascontiguousarray(rows).reshape(-1)
        region = replace(self.view, crop=self.view.crops.within)
        raw = torch.from_numpy(read(self.screen.pixels, flat, region, seed=seed, train=False))
        scale, shift = self.normaliser.affine(self.screen, flat)
        return make_views(
            raw.to(self.device, non_blocking=True),
            torch.from_numpy(scale),
            torch.from_numpy(shift),
            self.view,
            num_sources=1 if rows.ndim == 1 else 2,
            seed=seed,
            train=train,
            local=self.needs.local_views,
        )

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """(n,) class codes of rows."""
        return self.coded.label[rows]

    def batch(self, rows: np.ndarray, *, seed: int = 0, train: bool = False) -> Batch:
        """A batch of rows; the labels of controls are unknown by construction of `Units`.

        Args:
            rows: (n,) rows; or (n, 2) rows of pairs, for a method that asks for views: all but the
                views is then said of the first ones.
            seed: Equal seeds give equal bits.
            train: Whether views are random. The `image` of a method that asks for views is then
                the first global one, otherwise the image as it is deployed on.
        """

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

        rows = np.asarray(rows, dtype=np.int64)
        first, last = (rows, rows) if rows.ndim == 1 else (rows[:, 0], rows[:, 1])
        more: dict[str, Tensor | None] = {}
        if self.needs.views:
            large, small = self.views(rows, seed=seed, train=train)
            more = {
                "global_views": large,
                "local_views": small,
                "partner": tensor(last),
                "partner_domain": tensor(self.coded.domain[last]),
            }
        with_views = train and self.needs.views
        return Batch(
            image=large[:, 0] if with_views else self.images(first, seed=seed, train=train),
            label=tensor(self.labels(first)),
            is_control=tensor(self.coded.is_control[first]),
            context=tensor(self.coded.context[first]),
            domain=tensor(self.coded.domain[first]),
            row=tensor(first),
            seed=seed,
            **more,
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
