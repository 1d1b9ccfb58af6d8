"""AdaBN: the pooled statistics of all perturbed images of the unit.

Li et al. 2016, arXiv 1603.04779.

Departures: moments are pooled, so the variance between chunks counts; released code averages the
variances of its batches (means 0 and 4 then give 1.01 in place of 4.98).

The rule is that of `batch`; what differs is what the caller hands over: here every perturbed image
of the unit, there the few images that are to be predicted.
"""

from __future__ import annotations

from evenfield.adapt.base import ADAPTERS, PerturbedStatistics


@ADAPTERS.register("domain")
class Domain(PerturbedStatistics):
    """Pooled statistics of all perturbed images of the unit.

    Fails when the unit's class mix differs from training's. Fallback: without a perturbed image the
    source's statistics stay.
    """
