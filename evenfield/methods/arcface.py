"""ArcFace: classes are directions, and training keeps an angle of at least a margin between them.

Deng, Guo, Xue and Zafeiriou, "ArcFace: additive angular margin loss for deep face recognition",
CVPR 2019, https://arxiv.org/abs/1801.07698. The mathematics is in `nn.heads`.

Where this file departs from the paper or from common code, and why:
    scale, margin  s = 64, m = 0.5 are for a million faces. On RxRx1 s = 30 is what the published
                   solutions take, with m from 0.1 to 0.5; here 0.3, as in `abra`.
    warm-up        The margin rises linearly from 0 over the first `margin_warmup` of the training,
                   so that directions form before they are pushed apart.
    eval mode      The loss, which selects the model, is that of the deployed head: no margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.heads import CosineHead, warmed_up, with_margin
from evenfield.types import Batch, Losses


@METHODS.register("arcface")
class ArcFace(Method):
    """Cross-entropy of scaled cosines, the target's angle enlarged by a margin."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of ArcFace.

        Attributes:
            s: Scale of the logits.
            m: Angular margin in radians.
            margin_warmup: Share of the training over which the margin rises from 0.
        """

        s: float = 30.0
        m: float = 0.3
        margin_warmup: float = 0.11

        def __post_init__(self) -> None:
            check_range("s", self.s, 1e-3)
            check_range("m", self.m, 0, math.pi / 2)
            check_range("margin_warmup", self.margin_warmup, 0, 1)

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        super().__init__(config, backbone=backbone, d=d, k=k, c=c)
        self.predictor.head = CosineHead(d, k, s=config.s)

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean over the labelled images of the cross-entropy of s [cos with arc at the target]."""
        config = self.config
        logits = self.predictor(batch.image)
        if self.training:
            m = warmed_up(config.m, progress, config.margin_warmup)
            logits = config.s * with_margin(logits / config.s, batch.label, m)
        risk = cross_entropy(logits, batch.label)
        return Losses(total=risk, parts={"risk": risk})
