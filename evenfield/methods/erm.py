"""Empirical risk minimisation: one mixture of all batches, as if there were no batch effects.

Vapnik, "Statistical Learning Theory", 1998. The baseline of every table.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenfield.methods.base import METHODS, Method, cross_entropy
from evenfield.types import Batch, Losses


@METHODS.register("erm")
class ERM(Method):
    """Cross-entropy over shuffled images of all training plates, running statistics kept."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """ERM has no hyper-parameters of its own."""

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean cross-entropy over the labelled images."""
        del progress
        risk = cross_entropy(self.predictor(batch.image), batch.label)
        return Losses(total=risk, parts={"risk": risk})
