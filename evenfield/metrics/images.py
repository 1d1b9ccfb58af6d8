"""How far images differ: structure, and the distribution of features. Arrays only, no labels.

These are no entries of `METRICS`: they compare images with images, not predictions with labels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from evenfield.errors import InputError

SIGMA, RADIUS = 1.5, 5
K1, K2 = 0.01, 0.03


def ssim(
    a: Float[np.ndarray, "n c h w"], b: Float[np.ndarray, "n c h w"], *, span: float = 1.0
) -> Float[np.ndarray, " n"]:
    """Structural similarity of each pair of images, 1 where they are equal.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE
    TIP 2004: a Gaussian window of 11 pixels and standard deviation 1.5, weights of sum 1, no
    padding (5 pixels at the border are left out), mean over pixels, then over channels.

    Args:
        a: Images with sides of 11 pixels or more.
        b: As many images of the same size.
        span: The largest minus the least possible value (L of the paper).

    Raises:
        InputError: Shapes differ, or a side is below 11 pixels.
    """
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[2:]) < 2 * RADIUS + 1:
        raise InputError(
            f"SSIM of images of shapes {a.shape} and {b.shape}",
            fix="give equal shapes (n, c, h, w) with sides of 11 pixels or more",
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = _windowed(a), _windowed(b)
    var_a = _windowed(a * a) - mean_a**2
    var_b = _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean((1, 2, 3))


def _windowed(x: Float[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n c i j"]:
    blurred = gaussian_filter(x, (0, 0, SIGMA, SIGMA), truncate=RADIUS / SIGMA)
    return blurred[:, :, RADIUS:-RADIUS, RADIUS:-RADIUS]


def correlation(
    a: Float[np.ndarray, n * rest], b: Float[np.ndarray, n * rest]
) -> Float[np.ndarray, " n"]:
    """Pearson's correlation of each pair over all its values; 0 where one of them is constant.

    >>> correlation(np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 4.0, 6.0]])).round(6)
    array([1.])
    """
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Squared Frechet distance of the Gaussians that have the means and covariances of two sets.

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), as in the FID of Heusel et al. (NeurIPS
    2017), on whatever features are given. It grows when samples are few: compare only sets of equal
    size. The trace of the root is the sum of the singular values of A B^T / sqrt((n-1) (m-1)), with
    A and B the centred features, so that no root of a matrix is taken.

    Raises:
        InputError: A set has fewer than two samples, or the features differ in number.

    >>> frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]]))  # (4 - 1)^2
    9.0
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(
            f"a Frechet distance between features of shapes {a.shape} and {b.shape}",
            fix="give two samples or more of each, with the same features",
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    centred_a, centred_b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    roots = [np.asarray(np.linalg.qr(x, mode="r")) for x in (centred_a, centred_b)]
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(max(shift + (centred_a**2).sum() + (centred_b**2).sum() - 2 * cross, 0.0))
