"""DANN: learn features from which a discriminator cannot tell the experimental batch.

Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand and Lempitsky,
"Domain-adversarial training of neural networks", JMLR 17, 2016, https://arxiv.org/abs/1505.07818.

Where this file departs from the paper, and why:
    many domains    The paper tells a source from a target. Here the discriminator tells every
                    training domain from every other, as WILDS and DomainBed do.
    width           The constructor does not know how many domains there are: the discriminator has
                    `num_domains` outputs, and a domain code beyond them is an error. Outputs
                    without a domain cost a little time and soon get no probability.
    discriminator   Two hidden layers of 1,024 with BatchNorm, as in WILDS. It learns at the same
                    rate as the rest (WILDS gives the features a tenth of it).
    weight          lambda scales only what reaches the features, as in the paper's experiments: the
                    discriminator learns at full speed from the start, and weight 0 is ERM.
    evaluation      The discriminator knows the training domains only: in eval mode the loss is the
                    classification loss alone.
    no labels       Unlabelled images and controls in a batch take part in the game.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenfield.errors import InputError
from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.gradient_reversal import reverse_gradient
from evenfield.types import Batch, Losses, Needs


@METHODS.register("dann")
class DANN(Method):
    """Cross-entropy against a discriminator of domains behind a gradient reversal.

    Attributes:
        discriminator: Features (n, d) to logits over domains (n, num_domains).
    """

    needs: ClassVar[Needs] = Needs(domains=2)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of DANN.

        Attributes:
            weight: The factor of the reversed gradient, lambda of the paper at the end.
            ramp: Whether lambda rises from 0 as in the paper, 2 / (1 + exp(-10 p)) - 1 of it.
            num_domains: Most domains that the discriminator can tell apart.
            hidden: Width of its two hidden layers.
        """

        weight: float = 1.0
        ramp: bool = True
        num_domains: int = 64
        hidden: int = 1024

        def __post_init__(self) -> None:
            check_range("weight", self.weight, 0)
            check_range("num_domains", self.num_domains, 2)
            check_range("hidden", self.hidden, 1)

    def __init__(self, config: Any, *, backbone: nn.Module, d: int, k: int, c: int) -> None:
        super().__init__(config, backbone=backbone, d=d, k=k, c=c)
        self.discriminator = discriminator(d, config.hidden, config.num_domains)

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Eq. (9) of the paper as one sum, whose saddle point the reversed gradient seeks.

        Raises:
            InputError: A domain's code is beyond `num_domains`.
        """
        z_nd = self.predictor.features(batch.image)
        risk = cross_entropy(self.predictor.head(z_nd), batch.label)
        if not self.training:
            return Losses(total=risk, parts={"risk": risk})
        adversary = self._domain_risk(z_nd, batch.domain, self._weight(progress))
        return Losses(total=risk + adversary, parts={"risk": risk, "domain": adversary})

    def _weight(self, progress: float) -> float:
        return self.config.weight * (ramp(progress) if self.config.ramp else 1.0)

    def _domain_risk(
        self, z: Float[Tensor, "n d"], domain: Int[Tensor, " n"], weight: float
    ) -> Float[Tensor, ""]:
        """The discriminator's cross-entropy, whose gradient reaches the features reversed."""
        if len(domain.unique()) < 2:
            return z.new_zeros(())  # there is nothing to tell apart
        if (highest := int(domain.max())) >= self.config.num_domains:
            raise InputError(
                f"dann: the discriminator tells {self.config.num_domains} domains apart, and a "
                f"batch holds the domain of code {highest}",
                fix=f"train with --options.num-domains {highest + 1} or more",
            )
        logits = self.discriminator(reverse_gradient(z, weight))
        return F.cross_entropy(logits.float(), domain)


def ramp(progress: float) -> float:
    """How much of lambda acts at a point of the training: 2 / (1 + exp(-10 p)) - 1.

    >>> ramp(0.0), round(ramp(0.5), 4)
    (0.0, 0.9866)
    """
    return 2 / (1 + math.exp(-10 * progress)) - 1


def discriminator(d: int, hidden: int, num_domains: int) -> nn.Sequential:
    """Features to hidden, twice with BatchNorm and ReLU, to logits over the domains."""
    return nn.Sequential(
        nn.Linear(d, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_domains),
    )
