"""MMD: make the distributions of the features equal across batches, as seen by Gaussian kernels.

Gretton, Borgwardt, Rasch, Schoelkopf and Smola, "A kernel two-sample test", JMLR 13, 2012 (the
biased statistic, Eq. (5)); as a penalty on features of several domains: Li, Pan, Wang and Kot,
"Domain generalization with adversarial feature learning", CVPR 2018. The sum of kernels with
gamma = 1e-3, 1e-2, ..., 1e3 and the weight 1 are those of DomainBed (Gulrajani and Lopez-Paz 2021).

Where this file departs from these sources, and why:
    no adversary   Li et al. also match the features to a prior by an adversarial auto-encoder;
                   DomainBed and we keep the MMD term alone.
    distances      |x - y|^2 is summed from differences. DomainBed expands it into products, whose
                   rounding error the largest gamma turns into a gap between equal features.
    pairs          One kernel matrix of the whole batch holds what every pair needs.
    no labels      Unlabelled images and controls in a batch take part in the penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.distances import kernel
from evenfield.types import Batch, Losses, Needs


@METHODS.register("mmd")
class MMD(Method):
    """Cross-entropy plus the kernel distance between every two domains of the batch."""

    needs: ClassVar[Needs] = Needs(domains=2)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of MMD.

        Attributes:
            weight: The factor of the MMD term.
        """

        weight: float = 1.0

        def __post_init__(self) -> None:
            check_range("weight", self.weight, 0)

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Cross-entropy + weight * mean over the pairs of domains of MMD^2."""
        del progress
        z_nd = self.predictor.features(batch.image)
        risk = cross_entropy(self.predictor.head(z_nd), batch.label)
        with torch.autocast(z_nd.device.type, enabled=False):  # kernels want float32
            mmd = mean_pairwise_mmd(z_nd.float(), batch.domain)
        total = risk + self.config.weight * mmd
        return Losses(total=total, parts={"risk": risk, "mmd": mmd})


def mean_pairwise_mmd(z: Float[Tensor, "n d"], domain: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean over pairs of domains of mean k(s, s') + mean k(t, t') - 2 mean k(s, t); 0 if none.

    >>> z = torch.tensor([[1.0], [4.0], [4.0], [1.0]])
    >>> mean_pairwise_mmd(z, torch.tensor([0, 0, 1, 1]))  # a set and itself
    tensor(0.)
    """
    codes, place = domain.unique(return_inverse=True)
    m = len(codes)
    if m < 2:
        return z.new_zeros(())
    share_mn = F.one_hot(place, m).T.to(z.dtype)
    share_mn = share_mn / share_mn.sum(1, keepdim=True)
    mean_mm = share_mn @ kernel(z) @ share_mn.T  # the mean kernel between two domains
    own = mean_mm.diagonal()
    gap_mm = own[:, None] + own[None, :] - 2 * mean_mm
    # Gaps are sums of squares but for rounding; the diagonal is no pair.
    return gap_mm.triu(1).clamp(min=0).sum() / (m * (m - 1) / 2)
