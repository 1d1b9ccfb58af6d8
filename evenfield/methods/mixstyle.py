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

import numpy as np
from torch import Tensor

from evenfield.methods.base import METHODS, Restyled, check_range
from evenfield.nn.restyle import (
    Partner,
    mixing_shares,
    partners,
    style_mixed,
)
from evenfield.types import Batch


@METHODS.register("mixstyle")
class MixStyle(Restyled):
    """Cross-entropy under early features whose statistics are mixed between images."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Restyled.Config):
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

    def changed(self, x: Tensor, *, batch: Batch, random: np.random.Generator) -> Tensor:
        """Means and standard deviations mixed with those of a partner."""
        other = partners(batch.domain, self.config.partner, random)
        share = mixing_shares(random, len(x), self.config.alpha).to(x.device)
        return style_mixed(x, share, other)
