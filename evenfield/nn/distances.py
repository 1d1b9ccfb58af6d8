"""How far apart two sets of features are: by their second moments, by Gaussian kernels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

GAMMAS = (1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3)
"""The widths of DomainBed's kernels."""


def covariance(z: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """The unbiased covariance, Eqs. (2) and (3) of Deep CORAL: (Z'Z - (1'Z)'(1'Z) / n) / (n - 1).

    >>> covariance(torch.tensor([[1.0], [3.0]]))
    tensor([[2.]])
    """
    centred = z - z.mean(0)
    return centred.T @ centred / (len(z) - 1)


def coral_distance(s: Float[Tensor, "n_s d"], t: Float[Tensor, "n_t d"]) -> Float[Tensor, ""]:
    """The CORAL loss, |C_s - C_t|_F^2 / (4 d^2) (Sun and Saenko, arXiv 1607.01719, Eq. (1)).

    >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    >>> coral_distance(x, x + 5.0)  # it is blind to the means
    tensor(0.)
    >>> coral_distance(x, 2 * x)  # C_s - C_t = diag(2 - 8, 0): 36 / (4 * 4)
    tensor(2.2500)
    """
    gap_dd = covariance(s) - covariance(t)
    return gap_dd.square().sum() / (4 * s.shape[1] ** 2)


def kernel(z: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """The sum over gamma of exp(-gamma |x - y|^2).

    >>> kernel(torch.zeros(1, 2))  # a point and itself: 1 for each of the seven widths
    tensor([[7.]])
    """
    # Not through a product of matrices: the distance of equal features must be exactly 0.
    distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.stack([torch.exp(-gamma * distance) for gamma in GAMMAS]).sum(0)


def mmd_distance(s: Float[Tensor, "n_s d"], t: Float[Tensor, "n_t d"]) -> Float[Tensor, ""]:
    """The biased squared MMD: mean k(s, s') + mean k(t, t') - 2 mean k(s, t).

    >>> mmd_distance(torch.tensor([[1.0], [4.0]]), torch.tensor([[4.0], [1.0]]))
    tensor(0.)
    """
    k, n = kernel(torch.cat([s, t])), len(s)
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()
