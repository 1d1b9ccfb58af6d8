"""The head that self-distillation compares images in: a perceptron, the sphere, many directions.

Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021,
https://arxiv.org/abs/2104.14294, section 3.2 and appendix C: three layers with GELU and without
BatchNorm, a narrow output on the unit sphere, and a weight-normalised layer (Salimans and Kingma,
NeurIPS 2016) whose gain is fixed to 1: logits are cosines, between -1 and 1.

Here the last two steps are computed in float32 also under autocast: the teacher divides cosines by
a temperature of 0.04, and a cosine of bfloat16 has two digits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.nn.distillation import Settings
from evenfield.nn.heads import unit
from evenfield.nn.vit import linear


class DINOHead(nn.Module):
    """Features (n, d) to logits (n, k): cosines with k directions.

    Args:
        d: Number of features.
        k: Number of outputs.
        hidden: Width of the two hidden layers.
        bottleneck: Dimension of the sphere's space.
        batch_norm: Whether the hidden layers are normalised (an option of the authors' code).

    Attributes:
        directions: (k, bottleneck) of any length: only where they point counts.
    """

    def __init__(
        self, d: int, k: int, *, hidden: int, bottleneck: int, batch_norm: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (d, hidden):
            layers += [linear(before, hidden)]
            layers += [nn.BatchNorm1d(hidden)] if batch_norm else []
            layers += [nn.GELU()]
        self.mlp = nn.Sequential(*layers, linear(hidden, bottleneck))
        self.directions = nn.Parameter(torch.empty(k, bottleneck))
        nn.init.trunc_normal_(self.directions, std=0.02)

    def forward(
        self, z: Float[Tensor, "*n d"], *, frozen_last: bool = False
    ) -> Float[Tensor, "*n k"]:
        """Logits; the last layer gets no gradient where it is frozen."""
        hidden = self.mlp(z)
        with torch.autocast(z.device.type, enabled=False):
            directions = self.directions.detach() if frozen_last else self.directions
            return F.linear(unit(hidden), unit(directions))


def head_for(settings: Settings, d: int) -> DINOHead:
    """The head that the settings describe, on d features."""
    return DINOHead(
        d,
        settings.num_outputs,
        hidden=settings.hidden,
        bottleneck=settings.bottleneck,
        batch_norm=settings.head_norm,
    )
