"""Deep CORAL: make the second moments of the features equal across experimental batches.

Sun and Saenko, "Deep CORAL: correlation alignment for deep domain adaptation", ECCV-W 2016,
https://arxiv.org/abs/1607.01719. Equation numbers below are those of arXiv v1.

Where this file departs from the paper or from widely used code, and why:
    many domains   The paper has one source and one target. We average Eq. (1) over all the pairs
                   of domains present, as DomainBed does (Gulrajani and Lopez-Paz 2021).
    no mean term   Widely copied code adds |mean_s - mean_t|^2 / d and drops the factor 1/4 of
                   Eq. (1), so that a weight tuned there is to be multiplied by 4 here.
    what is left   The penalty is blind to the means of the features; `mmd` is not.
    no labels      Unlabelled images and controls in a batch take part in the penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.distances import covariance
from evenfield.types import Batch, Losses, Needs


@METHODS.register("coral")
class DeepCORAL(Method):
    """Cross-entropy plus the CORAL distance between every two domains of the batch."""

    needs: ClassVar[Needs] = Needs(domains=2)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of Deep CORAL.

        Attributes:
            weight: The factor of the CORAL term, lambda of Eq. (6).
        """

        weight: float = 1.0

        def __post_init__(self) -> None:
            check_range("weight", self.weight, 0)

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Eq. (6): the classification loss plus the weighted CORAL loss."""
        del progress
        z_nd = self.predictor.features(batch.image)
        risk = cross_entropy(self.predictor.head(z_nd), batch.label)
        with torch.autocast(z_nd.device.type, enabled=False):  # covariances want float32
            coral = mean_pairwise_coral(z_nd.float(), batch.domain)
        total = risk + self.config.weight * coral  # Eq. (6)
        return Losses(total=total, parts={"risk": risk, "coral": coral})


def mean_pairwise_coral(z: Float[Tensor, "n d"], domain: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean of Eq. (1) over the pairs of domains with two items or more; 0 if no pair.

    For one pair it is `nn.distances.coral_distance`. The squared distances of m matrices, averaged
    over their pairs, are 2 / (m - 1) times the summed squared distances to their mean: so m
    differences are held and not m (m - 1) / 2.

    >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    >>> z = torch.cat([x, 2 * x, x])  # the three pairs: 2.25, 0, 2.25
    >>> mean_pairwise_coral(z, torch.tensor([0, 0, 1, 1, 2, 2]))
    tensor(1.5000)
    """
    groups = [group for code in domain.unique() if len(group := z[domain == code]) >= 2]
    if len(groups) < 2:
        return z.new_zeros(())
    c_mdd = torch.stack([covariance(group) for group in groups])
    spread = (c_mdd - c_mdd.mean(0)).square().sum()
    return 2 / (len(groups) - 1) * spread / (4 * z.shape[1] ** 2)
