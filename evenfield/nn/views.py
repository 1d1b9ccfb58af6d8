"""How much two views of the same images disagree, and whether features have collapsed.

Divergences are per image, so that the caller says which images count.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evenfield.nn.distances import coral_distance, mmd_distance
from evenfield.nn.heads import precise, unit
from evenfield.types import UNKNOWN


class View(NamedTuple):
    """One view of a batch: features z (n, d) and logits (n, k) of the deployed head."""

    z: Tensor
    logits: Tensor

    def detach(self) -> View:
        """The same values as constants."""
        return View(self.z.detach(), self.logits.detach())


def jensen_shannon(
    logits: Float[Tensor, "n k"], other: Float[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """KL(p | q) / 2 + KL(p' | q) / 2 with q = (p + p') / 2: symmetric, between 0 and log 2.

    >>> z = torch.tensor([[0.0, 0.0], [1000.0, 0.0]])
    >>> jensen_shannon(z, z.flip(1)).tolist()  # equal views; views that exclude each other
    [0.0, 0.6931471824645996]
    """
    log_p, log_o = logits.log_softmax(1), other.log_softmax(1)
    log_q = torch.logaddexp(log_p, log_o) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_q) + log_o.exp() * (log_o - log_q)).sum(1)


def kullback_leibler(
    logits: Float[Tensor, "n k"], other: Float[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """KL(p | p'), with p a constant to the gradient; not bounded.

    >>> z = torch.tensor([[0.0, 0.0]])
    >>> kullback_leibler(z, torch.tensor([[math.log(3.0), 0.0]]))  # log(0.5 / sqrt(0.75 x 0.25))
    tensor([0.1438])
    """
    log_p = logits.detach().log_softmax(1)
    return (log_p.exp() * (log_p - other.log_softmax(1))).sum(1)


def turned(z: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """One minus the cosine of the angle between the views' features.

    >>> turned(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]]))
    tensor([1.])
    """
    return 1 - (unit(z) * unit(other)).sum(1)


def moment_gap(z: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The CORAL distance between the two sets of features; 0 (with a gradient) below two images."""
    return coral_distance(z, other) if len(z) > 1 else 0 * (z.sum() + other.sum())


def kernel_gap(z: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The squared MMD between the two sets of features; 0 (with a gradient) without an image."""
    return mmd_distance(z, other) if len(z) else 0 * (z.sum() + other.sum())


def gap(align: str, clean: View, other: View, keep: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """A distance of two views over the images to be kept, in float32 at least.

    Args:
        align: `js` (`jensen_shannon`), `kl`, `feat` (`turned`), `coral`, `mmd`, or `none`; several
            joined by `+` are added.
        clean: The view that `kl` takes as a constant.
        other: The other view.
        keep: Which images count.
    """
    with torch.autocast(clean.z.device.type, enabled=False):
        z, w = precise(clean.z), precise(other.z)
        p, q = precise(clean.logits), precise(other.logits)
        distances = {
            "none": lambda: p.new_zeros(()),
            "js": lambda: mean_over(jensen_shannon(p, q), keep),
            "kl": lambda: mean_over(kullback_leibler(p, q), keep),
            "feat": lambda: mean_over(turned(z, w), keep),
            "coral": lambda: moment_gap(z[keep], w[keep]),
            "mmd": lambda: kernel_gap(z[keep], w[keep]),
        }
        return torch.stack([distances[name]() for name in align.split("+")]).sum()


def mean_over(values: Float[Tensor, " n"], keep: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean of the values to be kept; 0 (with a gradient) if none."""
    return (values * keep).sum() / keep.sum().clamp(min=1)


@torch.no_grad()
def collapse(z: Float[Tensor, "n d"], label: Int[Tensor, " n"]) -> dict[str, Tensor]:
    """Guards against a collapse of the representation, of the directions u of the features.

    All three follow from the cosines between images: no decomposition is needed.

    Returns:
        `effective_rank`, the participation ratio (sum of eigenvalues)^2 / sum of squares of the
        directions' second moment, from 1 (all alike) to n; `mean_cosine` between two images, 1 if
        all are alike; `centre_spread`, root mean squared distance of the class centres (of known
        labels) to their mean, 0 if all are alike.

    >>> z, label = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    >>> [round(float(v), 4) for v in collapse(z, label).values()]
    [2.0, 0.0, 0.7071]
    """
    u = unit(z)
    with torch.autocast(z.device.type, enabled=False):
        cosine = u @ u.T
        n, trace = len(u), cosine.diagonal().sum()
        codes = label[label != UNKNOWN].unique()
        member = (label == codes[:, None]).to(cosine.dtype)
        mean = member / member.sum(1, keepdim=True)
        centres = mean @ cosine @ mean.T
    m = max(1, len(codes))
    variance = centres.diagonal().sum() / m - centres.sum() / m**2
    return {
        "effective_rank": trace.square() / cosine.square().sum().clamp(min=1e-12),
        "mean_cosine": (cosine.sum() - trace) / max(1, n * (n - 1)),
        "centre_spread": variance.clamp(min=0).sqrt(),
    }
