"""IRM: learn features on which one classifier is best in every experimental batch at once.

Arjovsky, Bottou, Gulrajani and Lopez-Paz, "Invariant risk minimization", 2019,
https://arxiv.org/abs/1907.02893, the practical objective (IRMv1).

Where this file departs from the paper or from WILDS' and DomainBed's code, and why:
    mean           Means over domains stand where the paper has sums, as in WILDS and DomainBed, so
                   that a weight does not depend on the number of domains.
    penalty        `squared` is the equation (IRMv1). Estimated on n images it is too large by the
                   variance of the slope over n. `halves` is the paper's unbiased estimate, which
                   WILDS and DomainBed use: the product of the slopes of two halves of a domain; it
                   may be negative. The halves are every other image in the order of the rows, so
                   that the loss does not depend on the order in a batch.
    closed form    The slope of the risk in the scale of the logits is written out; the authors
                   differentiate twice.
    weight         1 is the weight of WILDS for Camelyon17 and RxRx1; its general default, and
                   DomainBed's, is 100, which keeps a short training from scratch from learning.
    one domain     The penalty is each domain's own, so that batches of one domain keep it.
    anneal         Before the share `anneal` of the training the weight is at most 1, then `weight`,
                   and where it jumps the optimiser's state is cleared (DomainBed: after 500 of
                   5,001 steps). A weight up to 1 holds from the start, so that weight 0 is ERM.
    domains        Every domain of the batch counts equally, whatever its number of labelled images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenfield.methods.base import METHODS, Method, annealed, check_range, domain_risks, mean_of
from evenfield.types import UNKNOWN, Batch, Losses, Needs


@METHODS.register("irm")
class IRM(Method):
    """Mean of the domains' risks plus how far each domain would rescale the logits."""

    needs: ClassVar[Needs] = Needs(domains=2)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of IRM.

        Attributes:
            weight: The factor of the penalty, lambda of (IRMv1), after the annealing.
            anneal: Share of the training before which the factor is at most 1.
            penalty: `squared` slope of each domain's risk, as in (IRMv1), or the product of the
                slopes of its two `halves`, unbiased on mini-batches.
        """

        weight: float = 1.0
        anneal: float = 0.1
        penalty: Literal["squared", "halves"] = "squared"

        def __post_init__(self) -> None:
            check_range("weight", self.weight, 0)
            check_range("anneal", self.anneal, 0, 1)

    @property
    def reset_at(self) -> float | None:
        """Where the weight jumps; never, if it does not."""
        return self.config.anneal if self.config.weight > 1 else None

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """(IRMv1) with means: mean_d R_d + lambda mean_d |dR_d / dw|^2 at w = 1."""
        logits = self.predictor(batch.image)
        risk = mean_of(domain_risks(logits, batch.label, batch.domain))
        penalty = mean_of(self._penalties(logits.float(), batch))
        weight = annealed(self.config.weight, at=self.config.anneal, progress=progress)
        return Losses(total=risk + weight * penalty, parts={"risk": risk, "penalty": penalty})

    def _penalties(self, logits: Float[Tensor, "n k"], batch: Batch) -> Float[Tensor, " m"]:
        """One for each domain with a known label."""
        known = torch.nonzero(batch.label != UNKNOWN)[:, 0]
        known = known[batch.row[known].argsort()]
        slope = scale_slope(logits[known], batch.label[known])
        domain = batch.domain[known]
        each = [penalty_of(slope[domain == d], self.config.penalty) for d in domain.unique()]
        return torch.stack(each) if each else slope


def scale_slope(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """d/dw CE(w z, y) at w = 1, which is sum_k p_k z_k - z_y with p = softmax(z).

    >>> scale_slope(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    tensor([0., 0.])
    >>> z = torch.tensor([[3.0, 1.0]]).log()  # p = (3/4, 1/4): log(3) (3/4 - 1)
    >>> scale_slope(z, torch.tensor([0]))
    tensor([-0.2747])
    """
    expected = (logits.softmax(1) * logits).sum(1)
    return expected - logits.gather(1, label[:, None])[:, 0]


def penalty_of(slope: Float[Tensor, " n"], kind: Literal["squared", "halves"]) -> Float[Tensor, ""]:
    """The squared mean slope of a domain, or the product of the means of its two halves.

    One image has no second half: its product is 0.

    >>> s = torch.tensor([1.0, 5.0, 3.0])
    >>> penalty_of(s, "squared"), penalty_of(s, "halves")  # 3^2; (1 + 3) / 2 * 5
    (tensor(9.), tensor(10.))
    """
    if kind == "squared":
        return mean_of(slope).square()
    return mean_of(slope[0::2]) * mean_of(slope[1::2])
