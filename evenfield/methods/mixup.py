"""Mixup of domains: train between experimental batches, on blends of images from two of them.

Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: beyond empirical risk minimization", ICLR 2018,
https://arxiv.org/abs/1710.09412; between domains as in DomainBed (Gulrajani and Lopez-Paz 2021).

Where this file departs from the paper or from DomainBed's code, and why:
    partners       The paper pairs any two images. As in DomainBed the domains of a batch stand in
                   a ring, drawn anew, and the images of each are blended with those of the next,
                   with one share for each pair of domains.
    unequal sizes  DomainBed cuts both domains to the smaller one. Here every image is blended
                   once; the images of a smaller domain serve several times.
    who            Controls and images without a label pass unmixed. One domain alone, and every
                   batch in eval mode, is treated as by ERM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.mixing import blend, mixable, mixed_cross_entropy
from evenfield.seeds import numpy_generator
from evenfield.types import Batch, Losses, Needs


@METHODS.register("mixup")
class Mixup(Method):
    """Cross-entropy of blends of two domains, each against both labels."""

    needs: ClassVar[Needs] = Needs(domains=2)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of mixup.

        Attributes:
            alpha: The share of the first image is drawn from Beta(alpha, alpha): small values
                leave most blends near one of the two.
            p: Probability that a batch is blended.
        """

        alpha: float = 0.2
        p: float = 1.0

        def __post_init__(self) -> None:
            check_range("alpha", self.alpha, 1e-3)
            check_range("p", self.p, 0, 1)

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean of lambda CE(f(x), y_i) + (1 - lambda) CE(f(x), y_j).

        x = lambda x_i + (1 - lambda) x_j, with x_i and x_j of two domains.
        """
        del progress
        random = numpy_generator(batch.seed, "mixup")
        if not self.training or random.random() >= self.config.p:
            risk = cross_entropy(self.predictor(batch.image), batch.label)
        else:
            partner, keep = draw_pairs(random, batch, self.config.alpha)
            logits = self.predictor(blend(batch.image, partner, keep))
            risk = mixed_cross_entropy(logits, batch.label, partner, keep)
        return Losses(total=risk, parts={"risk": risk})


def draw_pairs(
    random: np.random.Generator, batch: Batch, alpha: float
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Each item's partner in the next domain of the ring, and the share that it keeps of itself.

    Items that are not mixed are their own partners and keep all.
    """
    partner, keep = np.arange(len(batch)), np.ones(len(batch), np.float32)
    items = mixable(batch)
    domain = batch.domain.cpu().numpy()[items]
    ring = random.permutation(np.unique(domain))
    if len(ring) > 1:
        for here, there in zip(ring, np.roll(ring, -1), strict=True):
            mine, theirs = items[domain == here], items[domain == there]
            partner[mine] = np.resize(random.permutation(theirs), len(mine))
            keep[mine] = random.beta(alpha, alpha)
    device = batch.label.device
    return torch.from_numpy(partner).to(device), torch.from_numpy(keep).to(device)
