"""Principal component regression: how much of the variance of the profiles does the batch explain?

Buettner et al., "A test metric for assessing single-cell RNA-seq batch correction", Nat. Methods
2019, https://doi.org/10.1038/s41592-018-0254-1: sum over principal components of variance times the
R^2 of the batch, over the total variance.

Over ALL components that is the variance between batches over the total variance, whatever the axes:
it is computed so, without decomposition. The components are decomposed for the table of the first
ones, where a batch effect of few directions shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.linalg import eigh

from evenfield.errors import InputError
from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.kernels.view import View


def explained(features: Float[np.ndarray, "n d"], code: Int[np.ndarray, " n"]) -> float:
    """Variance between the groups over the total variance, summed over features.

    >>> explained(np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1]))  # 16 / 20
    0.8
    """
    x = np.asarray(features, dtype=np.float64)
    x = x - x.mean(0)
    total = float((x**2).sum())
    return float((group_sums(x, code) ** 2 / np.bincount(code)[:, None]).sum() / total)


def group_sums(
    x: Float[np.ndarray, "n d"], code: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "g d"]:
    """The sum of the rows of each group."""
    sums = np.zeros((int(code.max()) + 1, x.shape[1]))
    np.add.at(sums, code, x)
    return sums


def explained_by_component(
    features: Float[np.ndarray, "n d"], code: Int[np.ndarray, " n"], num_components: int
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Share of the total variance of the first components, and the R^2 of the groups in each.

    Raises:
        InputError: All rows are equal.
    """
    x = np.asarray(features, dtype=np.float64)
    x = x - x.mean(0)
    total = float((x**2).sum())
    if total == 0:
        raise InputError("all profiles are equal", fix="there is no variance to explain")
    num, d = x.shape
    first = min(num_components, num - 1, d)
    # The smaller of the two squares has the same eigenvalues.
    square = x @ x.T if num < d else x.T @ x
    value, vector = eigh(square, subset_by_index=[len(square) - first, len(square) - 1])
    value, vector = np.maximum(value[::-1], 0), vector[:, ::-1]
    coordinate = vector * np.sqrt(value) if num < d else x @ vector
    between = (group_sums(coordinate, code) ** 2 / np.bincount(code)[:, None]).sum(0)
    r2 = np.divide(between, value, out=np.zeros(first), where=value > 1e-12 * total)
    return value / total, r2


def pcr_comparison(
    before: Float[np.ndarray, "n d"], after: Float[np.ndarray, "n e"], code: Int[np.ndarray, " n"]
) -> float:
    """The share of the explained variance that a correction removed; below 0 it added some.

    scib-metrics cuts negative values to 0: a correction that adds batch effect looks harmless.
    """
    start = explained(before, code)
    return (start - explained(after, code)) / start


@PROFILE_METRICS.register("pcr-batch")
class PrincipalComponentRegression(ProfileMetric):
    """Share of the variance of the profiles that the batch explains."""

    direction = "lower"
    aspect = "batch"
    needs = ("domain",)
    chance = "(number of batches - 1) / (number of rows - 1), the mean over random batches"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(ProfileMetric.Config):
        """The settings of principal component regression.

        Attributes:
            num_components: How many components the items list.
        """

        num_components: int = 10

    def compute(self, view: View) -> Score:
        """Over all components; `items` holds the first ones with their R^2."""
        code, num_names = view.codes("domain"), len(view.names("domain"))
        if len(view) < 3 or num_names < 2:
            return self.score(view, value=None, num=0, chance=None, notes=("one domain only",))
        features = view.profiles.features
        share, r2 = explained_by_component(features, code, self.config.num_components)
        return self.score(
            view,
            value=explained(features, code),
            num=len(view),
            chance=(num_names - 1) / (len(view) - 1),
            notes=("labels that live in one batch are explained with it",),
            items=pd.DataFrame(
                {"component": np.arange(1, len(share) + 1), "variance": share, "score": r2}
            ),
        )
