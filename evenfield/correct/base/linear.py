"""Covariances and their roots, by `eigh` of the smaller side; never a fractional power."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.linalg import qr

_ROWS = 8192
"""Rows that are converted to float64 at once."""


def scatter(
    x: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"], scale: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "d d"]:
    """Sum over rows of `z z^T` in float64, with `z = (x - mean) / scale`.

    Float64, because a direction of small variance is lost in float32 beside one of large variance.

    >>> scatter(np.array([[0.0, 1], [2, 3]]), np.array([1.0, 2]), np.ones(2)).tolist()
    [[2.0, 2.0], [2.0, 2.0]]
    """
    total = np.zeros((x.shape[1],) * 2)
    for start in range(0, len(x), _ROWS):
        z = (x[start : start + _ROWS] - mean) / scale
        total += z.T @ z
    return total


def shrinkage(
    x: Float[np.ndarray, "n d"],
    mean: Float[np.ndarray, " d"],
    scale: Float[np.ndarray, " d"],
    cov: Float[np.ndarray, "d d"],
) -> float:
    """Ledoit and Wolf's weight of the scaled identity (J Multivar Anal 88:365, 2004).

    `min(b2, d2) / d2`, with `d2 = |S - mu I|^2` and `b2 = (sum |z|^4 / n - |S|^2) / n`.

    Args:
        x: Rows.
        mean: What is taken off.
        scale: What they are divided by.
        cov: Their biased covariance `S` about that mean.
    """
    n, d = x.shape
    fourth = 0.0
    for start in range(0, n, _ROWS):
        z = (x[start : start + _ROWS] - mean) / scale
        fourth += float((np.square(z).sum(1) ** 2).sum())
    size = float(np.square(cov).sum())
    mu = float(np.trace(cov)) / d
    distance = size - d * mu**2
    return min(1.0, (fourth / n - size) / n / distance) if distance > 0 else 1.0


def towards_identity(cov: Float[np.ndarray, "d d"], weight: float) -> Float[np.ndarray, "d d"]:
    """`(1 - weight) cov + weight mu I`, with `mu` the mean variance.

    >>> towards_identity(np.diag([1.0, 3.0]), 0.5).tolist()
    [[1.5, 0.0], [0.0, 2.5]]
    """
    mixed = (1 - weight) * cov
    mixed[np.diag_indices_from(mixed)] += weight * np.trace(cov) / len(cov)
    return mixed


def power(cov: Float[np.ndarray, "d d"], exponent: float) -> Float[np.ndarray, "d d"]:
    """A symmetric power of a positive definite matrix, such as `cov^(-1/2)`.

    >>> power(np.diag([4.0, 1.0]), -0.5).round(9).tolist()
    [[0.5, 0.0], [0.0, 1.0]]
    """
    value, vector = np.linalg.eigh(cov)
    half = vector * value ** (exponent / 2)
    return half @ half.T  # a product with its own transpose takes half the time


def principal(
    cov: Float[np.ndarray, "d d"],
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Eigenvalues, falling and not below 0, and their vectors as columns.

    The sign of a vector is arbitrary; here its largest entry is positive, so that equal matrices
    give equal answers on every machine.
    """
    value, vector = np.linalg.eigh(cov)
    value, vector = np.maximum(value[::-1], 0.0), vector[:, ::-1]
    largest = np.take_along_axis(vector, np.abs(vector).argmax(0)[None], 0)
    return value, vector * np.where(largest < 0, -1.0, 1.0)


def rank_of(value: Float[np.ndarray, " d"]) -> int:
    """How many eigenvalues are variance: those far below the largest are rounding.

    >>> rank_of(np.array([4.0, 1.0, 1e-15]))
    2
    """
    return int((value > 1e-10 * value.max()).sum())


def settled(vector: Float[np.ndarray, "d d"], rank: int) -> Float[np.ndarray, "d d"]:
    """The same vectors, those beyond the rank in the one basis that pivoted QR finds.

    Directions without variance have equal eigenvalues, so that any rotation of them is as right,
    and rounding (the number of threads) would choose one. Cosines of rows do not see it, but
    medians of rows do.

    >>> a, b = np.eye(3), np.eye(3)[:, [0, 2, 1]]
    >>> bool((settled(a, 1) == settled(b, 1)).all())
    True
    """
    rest = vector[:, rank:]
    if rest.shape[1] < 2:
        return vector
    rotation, upper, _ = qr(rest.T, mode="economic", pivoting=True)
    sign = np.where(np.diag(upper) < 0, -1.0, 1.0)
    return np.concatenate([vector[:, :rank], rest @ (rotation * sign)], axis=1)


def ridged_inverse_root(
    z: Float[np.ndarray, "m r"], weight: float, ridge: float
) -> Float[np.ndarray, "r r"]:
    """`(weight z^T z + ridge I)^(-1/2)`, through the smaller of `z^T z` and `z z^T`.

    With fewer rows than columns, `z z^T = U diag(k) U^T` gives
    `ridge^(-1/2) I + z^T U diag(g(k)) U^T z`, where
    `g(k) = ((weight k + ridge)^(-1/2) - ridge^(-1/2)) / k`, which is never above 0.

    >>> np.allclose(ridged_inverse_root(np.array([[1.0, 0.0]]), 3.0, 1.0), [[0.5, 0], [0, 1]])
    True
    """
    m, r = z.shape
    if m >= r:
        cov = weight * (z.T @ z)
        cov[np.diag_indices_from(cov)] += ridge
        return power(cov, -0.5)
    value, vector = np.linalg.eigh(z @ z.T)
    value = np.maximum(value, 0.0)
    inner = weight * value + ridge
    # The same as -g(k), without a difference of nearly equal numbers at small k.
    g = weight / (np.sqrt(ridge * inner) * (np.sqrt(inner) + np.sqrt(ridge)))
    side = z.T @ (vector * np.sqrt(g))
    root = -(side @ side.T)
    root[np.diag_indices_from(root)] += ridge**-0.5
    return root
