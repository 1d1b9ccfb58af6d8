"""SWAD: average the weights of every step inside the valley of the validation loss.

Cha et al., "SWAD: domain generalization by seeking flat minima", NeurIPS 2021,
https://arxiv.org/abs/2102.08604, Algorithm 1, with losses l_1, l_2, ... of the validations:

    start  the first s with l_s = min(l_s ... l_(s + n_converge - 1))
    bound  (1 + ratio) * mean(l_s ... l_(s + n_converge - 1))
    end    the last e before n_tolerance validations in a row above the bound
    theta  mean of the weights after every optimiser step from s to e

Where this file departs from the paper, or settles what it leaves open, and why:
    between validations  The paper validates after every step; here an epoch lies between. Steps
                         count with the validation that follows them: those that lead to s and to
                         e are in the average.
    no end               Where the training ends first, steps after the last validation within the
                         bound are left out: nothing says that they lie in the valley.
    no start             Where no valley was found, the single best weights stand (with a warning);
                         the paper averages the whole run, from the first weights on.
    negative losses      The bound is mean + ratio * |mean|.
    statistics           Running statistics of BatchNorm are not averaged but measured anew with
                         the average (Izmailov et al., arXiv 1803.05407, section 3.2): statistics
                         of weights that scatter are not those of their mean. Other buffers keep
                         the values of the last step.
    memory               Running means, not all weights: one on the device, and on the processor
                         one, and one for each validation that may yet count (at most five).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evenfield.methods.base import Method
from evenfield.nn.norm import batch_norms
from evenfield.types import Batch

N_CONVERGE = 3
N_TOLERANCE = 6
RATIO = 0.3
STATISTICS_PASSES = 100


@dataclass(slots=True)
class Mean:
    """A running mean of weights, by name.

    Attributes:
        num: How many weights went in.
        weights: Their mean; empty before the first.
        loss: Of the validation that closed it.
    """

    num: int
    weights: dict[str, Tensor]
    loss: float = 0.0

    def add(self, weights: Mapping[str, Tensor], num: int = 1) -> None:
        """Take in weights, or the mean of `num` of them."""
        self.num += num
        for name, tensor in weights.items():
            if name in self.weights:
                self.weights[name].lerp_(tensor, num / self.num)
            else:
                self.weights[name] = tensor.detach().clone()


class Valley:
    """Follows the validation loss and averages the weights between start and end of its valley.

    Args:
        method: Its parameters that ask for a gradient are averaged.
        n_converge: Validations without a lower loss after which the valley has begun.
        n_tolerance: Validations in a row above the bound after which it has ended.
        ratio: How far the bound lies above the mean loss at the beginning.
    """

    def __init__(
        self,
        method: nn.Module,
        *,
        n_converge: int = N_CONVERGE,
        n_tolerance: int = N_TOLERANCE,
        ratio: float = RATIO,
    ) -> None:
        self._params = {n: p for n, p in method.named_parameters() if p.requires_grad}
        self._n_converge, self._n_tolerance, self._ratio = n_converge, n_tolerance, ratio
        self._now = Mean(0, {})
        self._pending: list[Mean] = []
        self._average = Mean(0, {})
        self.bound: float | None = None
        self.ended = False

    @property
    def num(self) -> int:
        """How many steps are in the average."""
        return self._average.num

    @torch.no_grad()
    def add(self) -> None:
        """Take in the weights after an optimiser step."""
        if not self.ended:
            self._now.add(self._params)

    @torch.no_grad()
    def close(self, loss: float) -> None:
        """Take in the loss of a validation; the steps before it count with it."""
        if self.ended or not self._now.num:
            return
        on_processor = {name: tensor.cpu() for name, tensor in self._now.weights.items()}
        self._pending.append(Mean(self._now.num, on_processor, loss))
        self._now = Mean(0, {})
        if self.bound is None:
            if loss < self._pending[0].loss:
                self._pending = self._pending[-1:]
            if len(self._pending) < self._n_converge:
                return
            level = sum(part.loss for part in self._pending) / len(self._pending)
            self.bound = level + self._ratio * abs(level)
        inside = [place for place, part in enumerate(self._pending) if part.loss <= self.bound]
        counts = max(inside, default=-1) + 1
        for part in self._pending[:counts]:
            self._average.add(part.weights, part.num)
        self._pending = self._pending[counts:]
        self.ended = len(self._pending) >= self._n_tolerance

    @torch.no_grad()
    def put(self) -> None:
        """Give the average to the method's parameters."""
        for name, tensor in self._average.weights.items():
            self._params[name].copy_(tensor)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors and numbers."""
        return {
            "now": as_dict(self._now),
            "pending": [as_dict(part) for part in self._pending],
            "average": as_dict(self._average),
            "bound": self.bound,
            "ended": self.ended,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        device = next(iter(self._params.values())).device
        self._now = Mean(**state["now"])
        self._now.weights = {name: t.to(device) for name, t in self._now.weights.items()}
        self._pending = [Mean(**part) for part in state["pending"]]
        self._average = Mean(**state["average"])
        self.bound, self.ended = state["bound"], state["ended"]


def as_dict(mean: Mean) -> dict[str, Any]:
    """The fields of a running mean; the tensors are not copied."""
    return {"num": mean.num, "weights": mean.weights, "loss": mean.loss}


def measure_statistics(method: Method, batches: Iterable[Batch]) -> None:
    """Running statistics of all BatchNorm layers: the mean over some training batches.

    The losses are computed in train mode, as in the training, so that each layer sees what it saw
    there; no weight moves, and other buffers are put back.

    Args:
        method: In any mode; it is handed back in eval mode.
        batches: Training batches, random views and all.
    """
    layers = batch_norms(method)
    tracked = {name: layer for name, layer in layers.items() if layer.running_mean is not None}
    if not tracked:
        return
    others = {
        name: buffer.clone()
        for name, buffer in method.named_buffers()
        if name.rpartition(".")[0] not in tracked
    }
    momenta = {name: layer.momentum for name, layer in tracked.items()}
    for layer in tracked.values():
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for a plain mean over all batches
    method.train()
    for batch in batches:
        method.losses(batch, progress=1.0)
    method.eval()
    for name, layer in tracked.items():
        layer.momentum = momenta[name]
    for name, buffer in method.named_buffers():
        if name in others:
            buffer.copy_(others[name])
