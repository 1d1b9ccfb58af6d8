"""ARM-BN: normalise the images of one plate by their own statistics, in training as at test.

Zhang et al., "Adaptive risk minimization: learning to adapt to domain shift", NeurIPS 2021,
https://arxiv.org/abs/2007.02931, with plates as domains, one plate per pass, as in BEN (Lin and
Lu, "Incorporating knowledge of plates in batch normalization improves generalization of deep
learning for microscopy images", bioRxiv 2022.10.14.512286).

Where this file departs from the paper, and why:
    episodes       The paper's step holds T groups of equal size. Here a batch may hold any number
                   of episodes (contexts) of any size: the loss is the mean over the episodes, each
                   the mean over its labelled images. For groups of equal size both are the same.
    controls       Negative controls take no part; the method that uses them is `cs-arm-bn`.
    eval mode      The mode is never switched. In train mode running statistics are kept (and used
                   by the adapter `source` only); in eval mode nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from evenfield.methods.base import METHODS, Method, cross_entropy, episode_mean
from evenfield.nn.norm import normalising, union_rule
from evenfield.types import Batch, Losses, Needs


@METHODS.register("arm-bn")
class ARMBN(Method):
    """Cross-entropy of episodes, each normalised by the statistics of its perturbed images."""

    needs: ClassVar[Needs] = Needs(one_context=True)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """ARM-BN has no hyper-parameters of its own."""

    @property
    def native(self) -> str:
        """Statistics of the new plate's perturbed images."""
        return "batch"

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean over episodes of the mean cross-entropy of their labelled images."""
        del progress
        risk = episode_mean(batch[~batch.is_control], self._risk)
        return Losses(total=risk, parts={"risk": risk})

    def _risk(self, episode: Batch) -> Tensor:
        with normalising(self.predictor, union_rule):
            return cross_entropy(self.predictor(episode.image), episode.label)
