"""Group DRO: minimise the risk of the worst experimental batch, by weights that follow the risks.

Sagawa, Koh, Hashimoto and Liang, "Distributionally robust neural networks for group shifts", ICLR
2020, https://arxiv.org/abs/1911.08731, Algorithm 1, with domains as groups.

Where this file departs from the paper or from WILDS' and DomainBed's code, and why:
    groups of a batch   The paper draws one group a step, DomainBed shows all of them, WILDS some.
                        Here the risks of the domains present are averaged with weights m q_d, where
                        m counts the domains met so far: with all of them in the batch this is
                        sum_d q_d R_d, with a part of them (drawn uniformly) its unbiased estimate,
                        with one domain in the training ERM.
    new domains         The weights stand in a buffer for `num_domains` codes, as the constructor
                        does not know their number. A domain enters with the mean weight of those
                        met before; a code beyond the buffer is an error.
    when                The weights are updated before they are used, as in Algorithm 1, in each
                        pass in train mode. In eval mode they stay, and domains never met have the
                        mean weight.
    regularisation      The paper needs strong weight decay or early stopping for the worst group to
                        gain: these are settings of the loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenfield.errors import InputError
from evenfield.methods.base import METHODS, Method, check_range, domain_risks, mean_of
from evenfield.types import UNKNOWN, Batch, Losses, Needs


@METHODS.register("groupdro")
class GroupDRO(Method):
    """Risks of the domains, weighted by how large they have been.

    Attributes:
        log_weight: (num_domains,) log q of Algorithm 1, up to a constant.
        met: (num_domains,) which domains have been trained on.
    """

    needs: ClassVar[Needs] = Needs(domains=2)
    log_weight: Tensor
    met: Tensor

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of Group DRO.

        Attributes:
            step_size: How fast the weights follow the risks, eta_q of Algorithm 1.
            num_domains: Most domains that weights are kept for.
        """

        step_size: float = 0.01
        num_domains: int = 1024

        def __post_init__(self) -> None:
            check_range("step_size", self.step_size, 0)
            check_range("num_domains", self.num_domains, 1)

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        super().__init__(config, backbone=backbone, d=d, k=k, c=c)
        self.register_buffer("log_weight", torch.zeros(config.num_domains))
        self.register_buffer("met", torch.zeros(config.num_domains, dtype=torch.bool))

    @property
    def weights(self) -> Float[Tensor, " num_domains"]:
        """q: they sum to 1 over the domains met, and are 0 elsewhere."""
        return self.log_weight.masked_fill(~self.met, -math.inf).softmax(0).nan_to_num()

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """mean_d (m q_d) R_d, after q_d <- q_d exp(eta R_d) for the domains present.

        Raises:
            InputError: A domain's code is beyond `num_domains`.
        """
        del progress
        risks = domain_risks(self.predictor(batch.image), batch.label, batch.domain)
        codes = batch.domain[batch.label != UNKNOWN].unique()  # in the order of `risks`
        if self.training and len(codes):
            self._follow(codes, risks.detach())
        risk = mean_of(self._relative(codes) * risks)
        worst = risks.amax() if len(risks) else risk
        return Losses(total=risk, parts={"risk": risk, "worst": worst})

    @torch.no_grad()
    def _follow(self, codes: Int[Tensor, " m"], risks: Float[Tensor, " m"]) -> None:
        """Algorithm 1, line 5: q_d <- q_d exp(eta R_d) for the domains of a batch."""
        if (highest := int(codes.max())) >= len(self.met):
            raise InputError(
                f"groupdro: weights are kept for {len(self.met)} domains, and a batch holds the "
                f"domain of code {highest}",
                fix=f"train with --options.num-domains {highest + 1} or more",
            )
        if self.met.any():
            mean = self.log_weight[self.met].logsumexp(0) - self.met.sum().log()
            self.log_weight[codes[~self.met[codes]]] = mean
        self.met[codes] = True
        self.log_weight[codes] += self.config.step_size * risks
        self.log_weight -= self.log_weight[self.met].amax()  # a factor of all q_d: none overflows

    def _relative(self, codes: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """The weights m q_d of domains: 1 for one of mean weight and for one never met."""
        relative = torch.where(self.met, self.weights * self.met.sum(), 1.0)
        return F.pad(relative, (0, 1), value=1.0)[codes.clamp(max=len(relative))]
