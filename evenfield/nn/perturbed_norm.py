"""What BatchNorm does while features are perturbed: what it keeps is of clean images only."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.nn.norm import Rule, batch_norms, normalise, normalising

InnerNorm = Literal["frozen_buffers", "eval", "dual"]


class PerturbedNorm(nn.Module):
    """The rule of the perturbed passes of a model, with the second set of layers if it has one.

    A second set (Xie et al., "Adversarial examples improve image recognition", CVPR 2020) has
    weights and running statistics of its own, copied from the first when it is made.

    Args:
        model: Whose BatchNorm layers are ruled.
        kind: Batch statistics that are not tracked (`frozen_buffers`); the same, with the running
            ones in the search (`eval`); or the second set (`dual`).
    """

    def __init__(self, model: nn.Module, kind: InnerNorm) -> None:
        super().__init__()
        self.kind = kind
        layers = batch_norms(model) if kind == "dual" else {}
        self.names = tuple(layers)
        self.second = nn.ModuleList(copy.deepcopy(layer) for layer in layers.values())

    def during(self, model: nn.Module, *, searching: bool) -> AbstractContextManager[None]:
        """Inside the block the layers of `model` follow the rule; no mode is switched.

        Args:
            model: The one of the constructor, or a copy of it.
            searching: Whether the pass belongs to the search, or is the one to be learned from.
        """
        rule: Rule = untracked_rule
        if self.kind == "eval" and searching:
            rule = running_rule
        if self.kind == "dual":
            second: dict[str, Any] = dict(zip(self.names, self.second, strict=True))

            def rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
                mine = second[name]
                return untracked_rule(name, mine, x) if searching else mine(x)

        return normalising(model, rule)


def untracked_rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
    """Statistics of the pass, of which nothing is kept."""
    del name
    return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)


def running_rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
    """The running statistics; those of the pass in a layer that keeps none."""
    if layer.running_mean is None or layer.running_var is None:
        return untracked_rule(name, layer, x)
    return normalise(layer, x, layer.running_mean, layer.running_var)
