"""A classifier on a frozen encoder: learns the task, and leaves the features as they are.

Fredin Haslum et al., "Bridging generalization gaps in high content imaging through online
self-supervised domain adaptation" (CODA), WACV 2024, https://arxiv.org/abs/2311.12623, step 2:

    logits = head(M(P(F(x)))[class token]),    loss = cross-entropy; only P, M and head learn

with F the encoder of a self-supervised run (`--train.weights RUN` takes what that run deploys, the
teacher), P a linear projector of every token and M a second transformer.

Where this file departs from the authors' code, and why:
    task          `linear` is the light choice: head(F(x)), a linear probe; the only one for
                  convolutional encoders, which give no tokens.
    M             As deep as F (12 blocks on DeiT-S), with published weights from a local file or
                  fresh ones: nothing is downloaded.
    unlabelled    Images without a label (-1) enter no loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from evenfield.methods.base import METHODS, Method, cross_entropy
from evenfield.nn.predictor import Predictor
from evenfield.nn.task_model import FirstToken, TaskTransformer, TwoPart
from evenfield.types import Batch, Losses


@METHODS.register("frozen")
class Frozen(Method):
    """Cross-entropy of a task model on an encoder that stays bit for bit as it is."""

    learns_to: ClassVar[float] = 0.95  # a linear layer on the few features of a random network
    tested_with: ClassVar[dict[str, Any]] = {"task": "linear"}

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The settings of a classifier on a frozen encoder.

        Attributes:
            task: What is trained on the encoder: a projector, a second `transformer` and a linear
                layer, as in CODA; or a `linear` layer alone.
            task_weights: A local file of published weights that the second transformer starts
                from; none = fresh ones.
        """

        task: Literal["transformer", "linear"] = "transformer"
        task_weights: Path | None = None

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        nn.Module.__init__(self)
        del c
        self.config = config
        task = (
            TaskTransformer(backbone, config.task_weights)
            if config.task == "transformer"
            else FirstToken()
        )
        self.predictor = Predictor(TwoPart(backbone, task), nn.Linear(d, k))

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean over the labelled images of the cross-entropy of head(M(P(F(x))))."""
        del progress
        risk = cross_entropy(self.predictor(batch.image), batch.label)
        return Losses(total=risk, parts={"risk": risk})
