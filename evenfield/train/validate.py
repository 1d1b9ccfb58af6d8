"""What selects the model on validation rows: loss, accuracy, its worst domain, or neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evenfield.adapt import ADAPTERS
from evenfield.config import Regime, RunConfig
from evenfield.data.dataset import Reader
from evenfield.data.split import contexts_for
from evenfield.data.transforms import crop_sides
from evenfield.errors import InputError
from evenfield.methods.base import Method
from evenfield.train.setup import Setup
from evenfield.types import UNKNOWN, Batch, Context

SelectBy = Literal["loss", "accuracy", "worst-domain", "knn", "last"]
ROWS = 256
NEIGHBOURS, TEMPERATURE = 50, 0.1
"""Of the vote of `knn`, as in the released code of CODA."""


def validation_rows(setup: Setup, config: RunConfig) -> list[np.ndarray]:
    """Rows of the validation batches, fixed over the run.

    Episodes like those of the training for a method that is deployed with a context's statistics,
    else blocks of rows.
    """
    rows, train, method = setup.split.validation, config.train, setup.method
    if not method.needs.one_context and method.native == "source":
        return blocks(rows)
    sizes = {len(part) for part in setup.coded.by_context(rows).values()}
    regime = Regime(
        num_images=min([train.num_perturbed, *sizes]),
        num_controls=train.num_controls if method.needs.controls else 0,
    )
    contexts = contexts_for(setup.coded, rows, regime, seed=config.split.seed)
    return [np.concatenate([item.perturbed, item.controls]) for item in contexts]


def labelled_rows(setup: Setup) -> list[np.ndarray]:
    """The training rows with a label, in blocks: whom the vote of `knn` asks.

    Raises:
        InputError: There are none.
    """
    rows = setup.split.train[setup.coded.label[setup.split.train] != UNKNOWN]
    if not len(rows):
        raise InputError(
            "no training image has a label, so that none can vote (`knn`)",
            fix="select by `last`, which reads no label",
        )
    return blocks(rows)


def blocks(rows: np.ndarray) -> list[np.ndarray]:
    """The rows in their order, at most 256 together."""
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]


class Fixed:
    """The validation batches, the same each time.

    While they are small they stay on the device as they are; else they are read again each time
    (the images of the WILDS validation sets take 4 to 8 GB).

    Args:
        reader: Of the screen.
        rows: Of each batch.
        most: Bytes that may stay.
    """

    def __init__(self, reader: Reader, rows: Sequence[np.ndarray], *, most: int = 2**30) -> None:
        self._reader, self._rows = reader, rows
        height, width = crop_sides(reader.view, *reader.screen.shape[1:])
        num_bytes = 4 * sum(map(len, rows)) * reader.screen.shape[0] * height * width
        self._kept = [reader.batch(part) for part in rows] if num_bytes <= most else None

    def __iter__(self) -> Iterator[Batch]:
        """The batches, one after the other."""
        return iter(self._kept) if self._kept is not None else map(self._reader.batch, self._rows)


@torch.no_grad()
def validate(
    method: Method,
    fixed: Iterable[Batch],
    select_by: SelectBy = "loss",
    bank: Iterable[Batch] = (),
) -> dict[str, float]:
    """Judge a method in eval mode, in the mode that it is deployed in.

    Args:
        method: In eval mode.
        fixed: The validation batches; one context each where the native adapter reads one.
        select_by: What has to be there; accuracies cost a second forward pass, and are left out
            where the loss selects.
        bank: Labelled training images, for `knn`.

    Returns:
        `loss`: all that the method minimises at the end of its training, mean over labelled
        images; each named part of it; `accuracy` and `worst-domain` (the lowest accuracy of a
        domain); `knn` (see `voted_right`).
    """
    sums: dict[str, float] = {}
    total = 0
    right: list[Tensor] = []
    domain: list[Tensor] = []
    voters = _features(method, bank) if select_by == "knn" else None
    for batch in fixed:
        num = int((batch.label != UNKNOWN).sum())
        losses = method.losses(batch, progress=1.0)
        for name, part in [*losses.parts.items(), ("loss", losses.total)]:
            sums[name] = sums.get(name, 0.0) + float(part) * num
        total += num
        if select_by in ("accuracy", "worst-domain"):
            scored = batch.scored
            right.append((logits(method, batch).argmax(1) == batch.label)[scored].float().cpu())
            domain.append(batch.domain[scored].cpu())
        elif voters is not None:
            right.append(voted_right(*voters, *_features(method, [batch])).float().cpu())
    found = {name: value / max(total, 1) for name, value in sums.items()}
    if voters is not None:
        found["knn"] = float(torch.cat(right).mean())
    elif right:
        hit, place = torch.cat(right), torch.cat(domain).unique(return_inverse=True)[1]
        found["accuracy"] = float(hit.mean())
        by_domain = torch.zeros(int(place.max()) + 1).index_add(0, place, hit) / place.bincount()
        found["worst-domain"] = float(by_domain.min())
    return found


def logits(method: Method, batch: Batch) -> Tensor:
    """(n, k) outputs for the images as deployed: after the native adapter, without labels."""
    if method.native == "source":
        return method.predictor(batch.image)
    rule = ADAPTERS[method.native]
    context = Context(image=batch.image, is_control=batch.is_control, name="validation")
    return rule(rule.Config()).fit(method.predictor, context).predict(batch.image)


def _features(method: Method, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Features and labels of the labelled images that are no controls."""
    z, label = [], []
    for batch in batches:
        z.append(method.predictor.features(batch.image)[batch.scored].float())
        label.append(batch.label[batch.scored])
    return torch.cat(z), torch.cat(label)


def voted_right(
    bank: Float[Tensor, "m d"],
    bank_label: Int[Tensor, " m"],
    z: Float[Tensor, "n d"],
    label: Int[Tensor, " n"],
) -> Bool[Tensor, " n"]:
    """Whether the 50 nearest of the bank by cosine name each image rightly.

    Each votes with exp(cosine / 0.1): Wu et al., CVPR 2018, https://arxiv.org/abs/1805.01978,
    section 3.4, and the released code of CODA.

    >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> voted_right(z, torch.tensor([0, 1]), 3 * z, torch.tensor([0, 0])).tolist()
    [True, False]
    """
    cosine = F.normalize(z, dim=1) @ F.normalize(bank, dim=1).T
    near, who = cosine.topk(min(NEIGHBOURS, len(bank)), dim=1)
    votes = cosine.new_zeros(len(z), int(bank_label.max()) + 1)
    votes.scatter_add_(1, bank_label[who], (near / TEMPERATURE).exp())
    return votes.argmax(1) == label
