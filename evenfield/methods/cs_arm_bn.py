"""CS-ARM-BN: normalise a plate by the statistics of its perturbed images and controls together.

Sanchez-Fernandez, Pinetz, Zellinger and Klambauer, "Stabilizing in-context multi-source domain
adaptation for biomedical images through controls", ICML 2026 (PMLR 306),
https://arxiv.org/abs/2604.20824. Written from a description of the method; no line of the
published code was used.

An episode is one plate: labelled perturbed images and unlabelled negative controls go through the
network in one pass, every BatchNorm layer takes mean and biased variance of the union, and the
cross-entropy is taken on the perturbed images only.

Where this file departs from the paper or from the authors' code, and why:
    context_train      The paper trains on the union. `perturbed` (ARM-BN on the same images) and
                       `controls` are ablations that every table shows: controls do not move with
                       the class mix, so that their statistics may be the better anchor.
    control_gradient   The paper's gradient flows through the controls; off, they are constants.
    episodes           The authors divide the loss of each of 8 passes by 8. Here a batch may hold
                       several episodes, and the loss is the mean over those with a label; the loop
                       accumulates the rest. Statistics never mix between episodes.
    labels             A control's label is never read, whatever it says.
    no controls        An episode without controls is one of ARM-BN. With `controls` this is a
                       fallback, and a warning says so (the authors' code stops with a KeyError).
    eval mode          The mode is never switched. Running statistics are kept in train mode, as a
                       side effect, and no prediction of this method reads them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.errors import EvenfieldWarning
from evenfield.methods.base import METHODS, Method, cross_entropy, episode_mean
from evenfield.nn.norm import Rule, normalising, subset_rule, union_rule
from evenfield.types import UNKNOWN, Batch, Losses, Needs


@METHODS.register("cs-arm-bn")
class CSARMBN(Method):
    """Cross-entropy of episodes whose statistics are stabilised by the plate's own controls."""

    needs: ClassVar[Needs] = Needs(controls=True, one_context=True)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The switches of CS-ARM-BN.

        Attributes:
            context_train: Whose statistics normalise an episode: those of perturbed images and
                controls together (the paper), of the perturbed images, or of the controls.
            control_gradient: Whether the gradient flows through the controls (the paper: yes).
        """

        context_train: Literal["union", "perturbed", "controls"] = "union"
        control_gradient: bool = True

    @property
    def native(self) -> str:
        """The adapter that takes the same images' statistics at a new plate."""
        natives = {"union": "union", "perturbed": "batch", "controls": "controls"}
        return natives[self.config.context_train]

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean over episodes of the mean cross-entropy of their labelled perturbed images."""
        del progress
        if self.config.context_train == "perturbed":
            batch = batch[~batch.is_control]
        risk = episode_mean(batch, self._risk)
        return Losses(total=risk, parts={"risk": risk})

    def _risk(self, episode: Batch) -> Tensor:
        with normalising(self.predictor, self._rule(episode.is_control)):
            logits = self.predictor(episode.image)
        return cross_entropy(logits, episode.label.masked_fill(episode.is_control, UNKNOWN))

    def _rule(self, is_control: Bool[Tensor, " n"]) -> Rule:
        if not is_control.any():
            if self.config.context_train == "controls":
                warnings.warn(
                    "cs-arm-bn: an episode without controls is normalised by its perturbed images",
                    EvenfieldWarning,
                    stacklevel=4,
                )
            return union_rule
        if self.config.context_train == "controls":
            return subset_rule(is_control, gradient=self.config.control_gradient)
        return union_rule if self.config.control_gradient else constant_rule(is_control)


def constant_rule(constant: Bool[Tensor, " n"]) -> Rule:
    """Statistics of all images, to which those in `constant` pass no gradient."""

    def rule(name: str, layer: _BatchNorm, x: Tensor) -> Tensor:
        mask = constant.reshape(-1, *([1] * (x.ndim - 1)))
        return union_rule(name, layer, torch.where(mask, x.detach(), x))

    return rule
