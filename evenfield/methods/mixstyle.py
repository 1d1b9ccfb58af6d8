"""MixStyle: early features get channel statistics between their own and another image's.

Zhou, Yang, Qiao and Xiang, "Domain generalization with MixStyle", ICLR 2021,
https://arxiv.org/abs/2104.02008. The formula is `nn.restyle.style_mixed`.

Where this file departs from the paper or from the authors' code, and why:
    other domain   The authors' variant that mixes between domains takes a batch of two equal
                   halves. Here `other-domain` draws each image's partner from all the images of
                   other domains, for any batch; where there is none the image stays.
    variance       Biased, so that a map of one pixel has one, too (the code: unbiased).
    alpha          0.1, the paper's value; the module of the released code starts at 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.places import changing
from evenfield.nn.restyle import (
    Partner,
    check_places,
    chosen,
    mixing_shares,
    partners,
    style_mixed,
)
from evenfield.types import Batch, Losses


@METHODS.register("mixstyle")
class MixStyle(Method):
    """Cross-entropy under early features whose statistics are mixed between images."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The settings of MixStyle.

        Attributes:
            p: Probability, for each place and batch, that statistics are mixed.
            alpha: The partner's share is drawn from Beta(alpha, alpha): small values leave most
                images near one of the two.
            stages: Places of the backbone where they are; the authors advise against the last.
            partner: Any image of the batch (`random`), or one of another domain (`other-domain`).
        """

        p: float = 0.5
        alpha: float = 0.1
        stages: tuple[str, ...] = ("1", "2")
        partner: Partner = "random"

        def __post_init__(self) -> None:
            check_range("p", self.p, 0, 1)
            check_range("alpha", self.alpha, 1e-3)

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        super().__init__(config, backbone=backbone, d=d, k=k, c=c)
        check_places(backbone, config.stages)

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean cross-entropy over the labelled images."""
        del progress
        with changing(self.predictor.backbone, self._changes(batch) if self.training else {}):
            logits = self.predictor(batch.image)
        risk = cross_entropy(logits, batch.label)
        return Losses(total=risk, parts={"risk": risk})

    def _changes(self, batch: Batch) -> dict[str, Any]:
        config = self.config

        def change(x: Tensor, random: np.random.Generator) -> Tensor:
            other = partners(batch.domain, config.partner, random)
            share = mixing_shares(random, len(x), config.alpha).to(x.device)
            return style_mixed(x, share, other)

        drawn = chosen(config.stages, config.p, batch.seed, "mixstyle")
        return {place: partial(change, random=random) for place, random in drawn.items()}
