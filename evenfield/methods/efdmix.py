"""EFDMix: early features get a distribution of values between their own and another image's.

Zhang, Li, Li, Jia and Zhang, "Exact feature distribution matching for arbitrary style transfer and
domain generalization", CVPR 2022, https://arxiv.org/abs/2203.07740 (Eq. 7, `nn.histogram.matched`):
MixStyle with all moments of a channel instead of two.

Where this file departs from the paper or from the authors' code, and why:
    other domain   As in `mixstyle`: each image's partner comes from any image of another domain,
                   where the code wants a batch of two equal halves.
    order          Equal values, the zeros behind a ReLU above all, keep the order of their
                   positions (a stable sort): the same result on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from evenfield.methods.base import METHODS, Restyled, check_range
from evenfield.nn.histogram import matched
from evenfield.nn.restyle import Partner, mixing_shares, partners
from evenfield.types import Batch


@METHODS.register("efdmix")
class EFDMix(Restyled):
    """Cross-entropy under early features whose histograms are mixed between images."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Restyled.Config):
        """The settings of EFDMix.

        Attributes:
            p: Probability, for each place and batch, that histograms are mixed.
            alpha: The partner's share is drawn from Beta(alpha, alpha): small values leave most
                images near one of the two.
            stages: Places of the backbone where they are; not the last.
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
        """Histograms mixed with those of a partner."""
        other = partners(batch.domain, self.config.partner, random)
        share = mixing_shares(random, len(x), self.config.alpha).to(x.device)
        return matched(x, share, other)
