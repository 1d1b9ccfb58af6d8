"""Prediction-time batch normalisation: the statistics of the perturbed images given ("BN-1").

Nado et al. 2020, arXiv 2006.10963; Schneider et al., NeurIPS 2020 (arXiv 2006.16971). For a model
trained one plate at a time it is the test rule of ARM-BN (Zhang et al., NeurIPS 2021, arXiv
2007.02931) and of BEN (Lin and Lu 2022, bioRxiv 2022.10.14.512286).

Departures: statistics are taken once and then frozen, so that a prediction does not depend on its
companions; the variance is the biased one of the joint pass.

The rule is that of `domain`; what differs is what the caller hands over: here the few images that
are to be predicted, there every perturbed image of the unit.
"""

from __future__ import annotations

from evenfield.adapt.base import ADAPTERS, PerturbedStatistics


@ADAPTERS.register("batch")
class Batch(PerturbedStatistics):
    """Statistics of the perturbed images given.

    Fails on few images and when few classes are present (label shift): the class itself is then
    normalised away. Fallback: without a perturbed image the source's statistics stay.
    """
