"""Fish: one optimiser step for each domain in turn, then a share of the way to where they lead.

Shi et al., "Gradient matching for domain generalization", ICLR 2022,
https://arxiv.org/abs/2104.09937, Algorithm 1: theta' = clone of theta; for each domain one inner
step of theta'; theta <- theta + eps (theta' - theta). To first order in the learning rate this
raises the inner products between the gradients of the domains.

Where this file departs from the paper or from the authors' code, and why:
    clone       The weights themselves take the inner steps and a copy of where they began, made
                once for the run, is moved: no module is copied, so any method can be trained so.
    order       Domains come in an order drawn from the batch's seed. A fixed order would make the
                last domain the one that is fitted best.
    optimiser   Its state (Adam's moments) goes on over inner and outer steps.
    buffers     Running statistics and other buffers stay as the inner steps left them: they are
                averages already, which a share of 0.01 would stop.
    accumulate  A step takes `accumulate` batches, each split by domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from evenfield.errors import InputError
from evenfield.methods.base import Method, check_range
from evenfield.seeds import derive, generator
from evenfield.types import Batch


class Outer:
    """The outer step: weights move by a share of what the inner steps did to them.

    Args:
        weights: They are changed in place.
        meta_lr: The share: 0 leaves the weights, 1 goes all the way.
    """

    def __init__(self, weights: list[nn.Parameter], meta_lr: float) -> None:
        self._weights, self._share = weights, meta_lr
        self._start = [torch.empty_like(p, requires_grad=False) for p in weights]

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Inside the block theta becomes theta'; behind it, theta + eps (theta' - theta)."""
        with torch.no_grad():
            for start, weight in zip(self._start, self._weights, strict=True):
                start.copy_(weight)
        yield
        with torch.no_grad():
            for start, weight in zip(self._start, self._weights, strict=True):
                weight.copy_(start.lerp_(weight, self._share))


def by_domain(batch: Batch) -> list[Batch]:
    """The batch cut by domain, in a drawn order; each part with a seed of its own."""
    codes = batch.domain.unique().tolist()
    order = torch.randperm(len(codes), generator=generator(batch.seed, "fish"))
    return [
        replace(batch[batch.domain == codes[place]], seed=derive(batch.seed, "fish", codes[place]))
        for place in order.tolist()
    ]


def check_fish(method: Method, meta_lr: float, num_workers: int = 1) -> None:
    """Refuse what Fish cannot do.

    Raises:
        InputError: The share lies outside 0 to 1, the method compares domains, or several
            processes train together: the inner steps follow each other.
    """
    check_range("--train.meta-lr", meta_lr, 0.0, 1.0)
    if method.needs.domains > 1:
        raise InputError(
            f"{type(method).name} compares the domains of a batch, and Fish (--train.meta-lr) "
            "steps on one domain at a time",
            fix="drop --train.meta-lr, or train erm with it",
        )
    if num_workers > 1:
        raise InputError(
            f"Fish (--train.meta-lr) cannot be dealt out to {num_workers} processes",
            fix="start one process",
        )
