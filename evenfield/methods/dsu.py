"""DSU: the channel statistics of early features become random, as uncertain as the batch says.

Li, Dai, Ge, Liu, Shan and Duan, "Uncertainty modeling for out-of-distribution generalization",
ICLR 2022, https://arxiv.org/abs/2202.03958.

Where this file departs from the paper or from the authors' code, and why:
    floor          In the released code a drawn standard deviation may become negative, which flips
                   the sign of a channel. Here it is at least `floor` of the image's own; `none`
                   is as released.
    variance       Biased, as in the paper's equations; the code takes torch's unbiased one, which
                   has no value for a batch of one image.
    places         The authors change six places of a ResNet, one of them before the first
                   BatchNorm. Here they are named places of any backbone, the first three by
                   default.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evenfield.methods.base import METHODS, Restyled, check_range
from evenfield.nn.restyle import floored, restyle, spread, statistics
from evenfield.types import Batch


@METHODS.register("dsu")
class DSU(Restyled):
    """Cross-entropy under random means and standard deviations of early features."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Restyled.Config):
        """The settings of DSU.

        Attributes:
            p: Probability, for each place and batch, that its statistics become random.
            stages: Places of the backbone where they do.
            factor: Factor on the spreads that they are drawn with.
            floor: The least share of its own standard deviation that a channel keeps; none = as
                released.
        """

        p: float = 0.5
        stages: tuple[str, ...] = ("stem", "1", "2")
        factor: float = 1.0
        floor: float | None = 0.1

        def __post_init__(self) -> None:
            check_range("p", self.p, 0, 1)
            check_range("factor", self.factor, 0)

    def changed(self, x: Tensor, *, batch: Batch, random: np.random.Generator) -> Tensor:
        """Means and standard deviations moved by Gaussian draws, in spreads of the mini-batch."""
        del batch
        config = self.config
        noise = random.standard_normal((2, *x.shape[:2]), dtype=np.float32)
        return uncertain(x, config.factor * torch.from_numpy(noise).to(x.device), config.floor)


def uncertain(
    x: Float[Tensor, "n c *pixels"], noise: Float[Tensor, "2 n c"], floor: float | None
) -> Float[Tensor, "n c *pixels"]:
    """Eqs. (3) to (6): mu' = mu + noise_0 Sigma_mu, sigma' = sigma + noise_1 Sigma_sigma.

    The spreads Sigma are taken over the mini-batch; no statistic is detached.

    >>> x = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])  # means 2 and 6, spread 2; sigma 1 and 1
    >>> uncertain(x, torch.tensor([[[1.0], [0.0]], [[0.0], [0.0]]]), None).flatten(1).round()
    tensor([[3., 5.],
            [5., 7.]])
    """
    mu, sigma = statistics(x)
    new_sigma = floored(sigma + noise[1] * spread(sigma), sigma, floor)
    return restyle(x, mu, sigma, mu + noise[0] * spread(mu), new_sigma)
