"""TENT: a few steps that lower the entropy of the predictions, on scale and shift only.

Wang, Shelhamer, Liu, Olshausen and Darrell, ICLR 2021 (arXiv 2006.10726):

    min over (gamma, beta) of  mean_i H(softmax z_i),   H(p) = - sum_k p_k log p_k

Departures: it fits on the context and then freezes, where the paper predicts in the pass before
each step; entropy is taken over perturbed rows only and controls act through the statistics; the
network stays in eval mode, so that dropout is off (the authors' code trains in train mode);
GroupNorm and LayerNorm count as affine layers too. Afterwards the statistics are estimated anew,
because the inputs of the deeper layers have moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.adapt.base import ADAPTERS, Adapted, Adapter, check_choice, checked, copy_of
from evenfield.errors import InputError
from evenfield.nn.estimate import device_of, held_by, stratified_chunks
from evenfield.nn.norm import Rule, normalise, normalising, subset_rule
from evenfield.nn.predictor import Predictor
from evenfield.seeds import generator
from evenfield.types import Context

AFFINE = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


@ADAPTERS.register("tent")
class Tent(Adapter):
    """Entropy minimisation on the affine parameters of the normalisation layers.

    Fails with few images and under label shift: the cheapest way to low entropy is one class for
    all. Fallback: without a perturbed image, or without an affine layer, only the statistics are
    adapted.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Adapter.Config):
        """The settings of `tent`.

        Attributes:
            steps: Passes over the context, with one step for each batch of it.
            learning_rate: Of Adam.
            batch_size: Images of a batch, perturbed and controls in the context's own mixture.
            statistics: The adapter whose statistics the normalisation layers stand on.
            seed: What the batches are drawn with.
        """

        steps: int = 1
        learning_rate: float = 1e-3
        batch_size: int = 200
        statistics: Literal["source", "batch", "controls", "union"] = "union"
        seed: int = 0

        def __post_init__(self) -> None:
            check_choice("statistics", self.statistics, ("source", "batch", "controls", "union"))
            if self.steps < 0 or self.batch_size < 1:
                raise InputError(
                    f"steps is {self.steps}, batch_size is {self.batch_size}",
                    fix="give steps of 0 or more and a batch of at least one image",
                )

    def fit(self, model: Predictor, context: Context) -> Adapted:
        """Steps on a copy, then statistics for the tuned copy."""
        checked(context)
        tuned = copy_of(model)
        affine = affine_parameters(tuned)
        if not len(context.perturbed):
            self.warn(context, "no perturbed image: only the statistics are adapted")
        elif not affine:
            self.warn(context, "the model has no affine layer: only the statistics are adapted")
        else:
            with torch.inference_mode(False), torch.enable_grad():
                self._tune(tuned, affine, context)
        frozen = ADAPTERS[self.config.statistics]().fit(tuned, context).model
        return Adapted(self, frozen, model)

    def _tune(self, tuned: Predictor, affine: list[nn.Parameter], context: Context) -> None:
        asked = [parameter.requires_grad for parameter in tuned.parameters()]
        tuned.requires_grad_(False)
        for parameter in affine:
            parameter.requires_grad_(True)
        adam = torch.optim.Adam(affine, lr=self.config.learning_rate)
        for batch in self._batches(context):
            num_perturbed = int((~batch.is_control).sum())
            rule = self._rule(num_perturbed, len(batch.image))
            with nullcontext() if rule is None else normalising(tuned, rule):
                logits = tuned(batch.image.to(device_of(tuned)))[:num_perturbed]
            adam.zero_grad()
            entropy(logits.float()).mean().backward()
            adam.step()
        for parameter, flag in zip(tuned.parameters(), asked, strict=True):
            parameter.grad = None
            parameter.requires_grad_(flag)

    def _batches(self, context: Context) -> Iterator[Context]:
        rng = generator(self.config.seed, "tent")
        for _ in range(self.config.steps):
            order = torch.randperm(len(context.image), generator=rng)
            shuffled = replace(
                context,
                image=context.image[order.to(context.image.device)],
                is_control=context.is_control[order.to(context.is_control.device)],
            )
            for batch in stratified_chunks(shuffled, self.config.batch_size):
                if not bool(batch.is_control.all()):
                    yield batch

    def _rule(self, num_perturbed: int, num_images: int) -> Rule | None:
        """The statistics of a step, with gradient through them; None: the source's."""
        side = {
            "source": slice(0),
            "batch": slice(num_perturbed),
            "controls": slice(num_perturbed, None),
            "union": slice(None),
        }[self.config.statistics]
        keep = torch.zeros(num_images, dtype=torch.bool)
        keep[side] = True
        if int(keep.sum()) < (2 if self.config.statistics == "controls" else 1):
            return None  # as the adapter `controls` falls back afterwards
        live = subset_rule(keep)

        def rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
            single = int(keep.sum()) * x[0, 0].numel() == 1
            return normalise(layer, x, *held_by(layer)) if single else live(name, layer, x)

        return rule


def entropy(logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """H = - sum_k p_k log p_k, in nats.

    >>> round(entropy(torch.zeros(1, 4)).item(), 4)  # log 4
    1.3863
    """
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def affine_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scale and shift of every normalisation layer."""
    return [
        parameter
        for module in model.modules()
        if isinstance(module, AFFINE)
        for parameter in module.parameters(recurse=False)
    ]
