"""LAME: neighbours in feature space should agree, the network stays as it is.

Boudiaf, Mueller, Ben Ayed and Bertinetto, CVPR 2022 (arXiv 2201.05718), from the formula alone:

    Y = p;  repeat  Y <- softmax_k( log p + W Y ),   W_ij = 1 for the k nearest neighbours j of i

on L2-normalised features, without self.

Departures: the paper corrects a batch jointly. Here the perturbed images of the context are solved
once, and a new image takes softmax(log p + sum of its k nearest context images' Y), so that it does
not depend on its companions. An image that is itself in the context does not count as its own
neighbour; it then gets exactly what the joint solution gave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evenfield.adapt.base import (
    ADAPTERS,
    Adapted,
    Adapter,
    check_choice,
    checked,
    perturbed_outputs,
)
from evenfield.errors import InputError
from evenfield.nn.predictor import Predictor
from evenfield.types import Context

SAME = 1e-5
"""Unit features nearer than this belong to one and the same image (rounding of other batches)."""


@ADAPTERS.register("lame")
class Lame(Adapter):
    """Laplacian adjusted maximum likelihood over the context's perturbed images.

    Made for label shift: it sharpens towards the classes that are there. Fails when features do not
    cluster by class on the new plate, and with fewer context images than neighbours. Fallback:
    without a perturbed image the outputs stay uncorrected.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Adapter.Config):
        """The settings of `lame`.

        Attributes:
            neighbours: k, how many context images speak for an image.
            max_rounds: Rounds of the fixed-point iteration.
            tolerance: Relative change of the objective at which it ends.
            statistics: The adapter whose statistics the normalisation layers stand on.
            chunk: Images that go through the network in one pass.
        """

        neighbours: int = 5
        max_rounds: int = 100
        tolerance: float = 1e-8
        statistics: Literal["source", "batch", "controls", "union"] = "source"
        chunk: int = 512

        def __post_init__(self) -> None:
            check_choice("statistics", self.statistics, ("source", "batch", "controls", "union"))
            if self.neighbours < 0:
                raise InputError(f"neighbours is {self.neighbours}", fix="give 0 or more")

    def fit(self, model: Predictor, context: Context) -> Adapted:
        """Solve the context; remember its features and its solution."""
        adapted = ADAPTERS[self.config.statistics]().fit(model, checked(context)).model
        if not len(context.perturbed):
            self.warn(context, "no perturbed image: the outputs stay uncorrected")
            return Adapted(self, adapted, model)
        features, logits = perturbed_outputs(adapted, context, self.config.chunk)
        links = nearest(features, features, self.config.neighbours)
        assignment = solve(
            logits.double().log_softmax(1),
            links,
            max_rounds=self.config.max_rounds,
            tolerance=self.config.tolerance,
        )
        memory = {
            "unit_feature": F.normalize(features.double(), dim=1).float(),
            "assignment": assignment,
        }
        return Adapted(self, adapted, model, memory)

    def output(
        self,
        features: Float[Tensor, "n d"],
        logits: Float[Tensor, "n k"],
        memory: dict[str, Tensor],
    ) -> Float[Tensor, "n k"]:
        """Logarithm of softmax(log p + sum of the nearest context images' assignments)."""
        if not memory:
            return logits.log_softmax(1)
        links = nearest(features, memory["unit_feature"], self.config.neighbours)
        y = agreement(memory["assignment"], links)
        return (logits.double().log_softmax(1) + y).log_softmax(1).to(logits.dtype)


@dataclass(frozen=True, slots=True)
class Links:
    """The neighbours of n images among m.

    Attributes:
        index: (n, j) rows of the m.
        counts: (n, j) whether an index is a neighbour (the image itself is none).
    """

    index: Int[Tensor, "n j"]
    counts: Bool[Tensor, "n j"]


def nearest(feature: Float[Tensor, "n d"], others: Float[Tensor, "m d"], k: int) -> Links:
    """The k nearest in angle, without the image itself; in float64, where rounding is below SAME.

    >>> nearest(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 1).index[:, :1].tolist()
    [[0], [1]]
    """
    cosine = F.normalize(feature.double(), dim=1) @ F.normalize(others.double(), dim=1).T
    value, index = cosine.topk(min(k + 1, cosine.shape[1]), dim=1)
    itself = 2 - 2 * value[:, :1] < SAME**2
    rank = torch.arange(index.shape[1], device=index.device)
    return Links(index, (rank >= itself.long()) & (rank < k + itself.long()))


def agreement(y: Float[Tensor, "m k"], links: Links) -> Float[Tensor, "n k"]:
    """W Y: the sum of the neighbours' assignments."""
    return (y[links.index] * links.counts[..., None]).sum(1)


def solve(
    log_p: Float[Tensor, "n k"], links: Links, *, max_rounds: int = 100, tolerance: float = 1e-8
) -> Float[Tensor, "n k"]:
    """Iterate Y <- softmax(log p + W Y) from Y = p.

    Ends when E = sum Y log Y - Y log p - Y (W Y) changes by less than `tolerance`, relatively.
    """
    y = log_p.exp()
    before = float("inf")
    for _ in range(max_rounds):
        log_y = (log_p + agreement(y, links)).log_softmax(1)
        y = log_y.exp()
        energy = float((y * (log_y - log_p - agreement(y, links))).nansum())
        if abs(before - energy) <= tolerance * abs(energy):
            break
        before = energy
    return y
