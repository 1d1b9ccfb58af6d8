"""Heads on the sphere: classes as directions, and a margin that training puts between them.

Deng et al., "ArcFace: additive angular margin loss for deep face recognition", CVPR 2019,
https://arxiv.org/abs/1801.07698. Angles are computed in float32 (or float64) also under autocast:
arccos-like terms of half-precision cosines near 1 have no correct digit.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenfield.nn.predictor import Predictor
from evenfield.types import UNKNOWN

EDGE = 1 - 1e-6
"""Cosines are clamped to +- this value: the derivative of the angle is infinite at 1."""


class CosineHead(nn.Module):
    """Logits `s cos(z, W_k)`, without bias; the lengths of z and W_k play no part.

    Args:
        d: Number of features.
        k: Number of classes.
        s: The scale of the logits: the sphere's radius.

    Attributes:
        weight: (k, d) directions of the classes.
    """

    def __init__(self, d: int, k: int, *, s: float) -> None:
        super().__init__()
        self.s = s
        self.weight = nn.Parameter(torch.empty(k, d))
        nn.init.xavier_normal_(self.weight)

    def cosine(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """The cosine of every feature vector with every class, in float32 at least."""
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(unit(z), unit(self.weight))

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits without margin: what a prediction uses."""
        return self.s * self.cosine(z)


class NeckPredictor(Predictor):
    """A predictor whose features go through a neck before the head.

    Attributes:
        neck: Pooled features (n, d) to the embedding (n, e).
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: nn.Module) -> None:
        super().__init__(backbone, head)
        self.neck = neck

    def features(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e"]:
        """The embedding."""
        return self.neck(self.backbone(image))


def neck(d: int, width: int) -> nn.Sequential:
    """BatchNorm, linear, ReLU, BatchNorm, linear, BatchNorm (winner of the RxRx1 challenge)."""
    return nn.Sequential(
        nn.BatchNorm1d(d),
        nn.Linear(d, width, bias=False),
        nn.ReLU(),
        nn.BatchNorm1d(width),
        nn.Linear(width, width, bias=False),
        nn.BatchNorm1d(width),
    )


def precise(x: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The directions of the rows, in float32 at least."""
    return F.normalize(precise(x), dim=1)


def arc(cosine: Float[Tensor, "*n"], m: float) -> Float[Tensor, "*n"]:
    """The cosine after the angle has grown by m: cos(theta + m), in its released form.

    Where theta + m would pass pi the value goes on as `c - m sin(pi - m)`, which decreases in theta
    but is not continuous with the first branch (for m = 0.5 it falls from -1 to -1.12). That is the
    published loss; it is not repaired here.

    >>> arc(torch.tensor([1.0, 0.0, -1.0]), 0.5)  # near cos 0.5, -sin 0.5, -1 - 0.5 sin 0.5
    tensor([ 0.8769, -0.4794, -1.2397])
    """
    c = cosine.clamp(-EDGE, EDGE)
    beyond = c - m * math.sin(math.pi - m)
    within = c * math.cos(m) - (1 - c.square()).sqrt() * math.sin(m)
    return torch.where(c > math.cos(math.pi - m), within, beyond)


def with_margin(
    cosine: Float[Tensor, "n k"], target: Int[Tensor, " n"] | Float[Tensor, "n k"], m: float
) -> Float[Tensor, "n k"]:
    """Cosines with the target's replaced by `arc`.

    Args:
        cosine: Of every item with every class.
        target: Class codes, of which -1 (unknown) gets no margin; or the classes' shares of each
            item (soft labels), in proportion to which the margin is applied.
        m: The margin in radians.

    >>> c = torch.tensor([[1.0, 0.0]])
    >>> with_margin(c, torch.tensor([0]), 0.5)
    tensor([[0.8769, 0.0000]])
    >>> with_margin(c, torch.tensor([[0.5, 0.5]]), 0.5)  # half of the way for both
    tensor([[ 0.9384, -0.2397]])
    """
    if target.is_floating_point():
        return torch.lerp(cosine, arc(cosine, m), target.to(cosine.dtype))
    column = target.clamp(min=0)[:, None]
    own = cosine.gather(1, column)
    moved = torch.where((target == UNKNOWN)[:, None], own, arc(own, m))
    return cosine.scatter(1, column, moved)


def warmed_up(value: float, progress: float, share: float) -> float:
    """A setting that rises linearly from 0 over the first `share` of the training.

    >>> [warmed_up(0.5, p, 0.2) for p in (0.0, 0.1, 0.2, 1.0)]
    [0.0, 0.25, 0.5, 0.5]
    """
    return value if progress >= share else value * progress / share
