"""V-REx: make the risks of all experimental batches equal, so that none pays for the others.

Krueger, Caballero, Jacobsen, Zhang, Binas, Zhang, Le Priol and Courville, "Out-of-distribution
generalization via risk extrapolation", ICML 2021, https://arxiv.org/abs/2003.00688.

Where this file departs from the paper or from DomainBed's code, and why:
    mean           The mean of the domains' risks stands where Eq. (8) has their sum, as in
                   DomainBed, so that a weight does not depend on the number of domains.
    anneal         Before the share `anneal` of the training the weight is at most 1, then `weight`,
                   and where it jumps the optimiser's state is cleared (DomainBed: after 500 of
                   5,001 steps). A weight up to 1 holds from the start, so that weight 0 is ERM.
    domains        Every domain of the batch counts equally, whatever its number of labelled images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from evenfield.methods.base import METHODS, Method, annealed, check_range, domain_risks, mean_of
from evenfield.types import Batch, Losses, Needs


@METHODS.register("vrex")
class VREx(Method):
    """Mean of the domains' risks plus their variance."""

    needs: ClassVar[Needs] = Needs(domains=2)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of V-REx.

        Attributes:
            weight: The factor of the variance, beta of Eq. (8), after the annealing.
            anneal: Share of the training before which the factor is at most 1.
        """

        weight: float = 10.0
        anneal: float = 0.1

        def __post_init__(self) -> None:
            check_range("weight", self.weight, 0)
            check_range("anneal", self.anneal, 0, 1)

    @property
    def reset_at(self) -> float | None:
        """Where the weight jumps; never, if it does not."""
        return self.config.anneal if self.config.weight > 1 else None

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Eq. (8) with a mean: mean_d R_d + beta Var_d(R_d)."""
        risks = domain_risks(self.predictor(batch.image), batch.label, batch.domain)
        weight = annealed(self.config.weight, at=self.config.anneal, progress=progress)
        risk, variance = mean_of(risks), population_variance(risks)
        return Losses(total=risk + weight * variance, parts={"risk": risk, "variance": variance})


def population_variance(x: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """The variance, divided by the number of values; 0 for one value or none.

    >>> import torch
    >>> population_variance(torch.tensor([1.0, 3.0]))
    tensor(1.)
    """
    return mean_of((x - mean_of(x)).square())
