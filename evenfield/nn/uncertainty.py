"""How far a batch effect may move the channel statistics of the places of a backbone.

The uncertainty of a place is a Gaussian around an image's own (mu, sigma). It is given by the
spread of a set of such statistics: of images, or of the means of experiments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenfield.errors import EvenfieldWarning
from evenfield.nn.gradient_reversal import reverse_gradient
from evenfield.nn.restyle import EPS, shifted, statistics

Reference = Literal["minibatch", "between_experiment", "ema", "ema_between_experiment"]


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """The Gaussian of one place, of c channels; the two rows of a spread are of mu and of sigma.

    Attributes:
        spread: (2, c) standard deviations.
        basis: (r, 2, c) correlated directions of the low-rank structure; None = diagonal.
        rest: (2, c) the standard deviations that the basis leaves over.
    """

    spread: Float[Tensor, "2 c"]
    basis: Float[Tensor, "r 2 c"] | None = None
    rest: Float[Tensor, "2 c"] | None = None

    @property
    def latent(self) -> tuple[int, ...]:
        """The shape of one offset: (2, c), or (r,)."""
        return tuple(self.spread.shape if self.basis is None else self.basis.shape[:1])

    def shift(
        self, offset: Float[Tensor, "m ..."], noise: Float[Tensor, "m 2 c"] | None
    ) -> Float[Tensor, "m 2 c"]:
        """What is added to mu and sigma: a S and b S; or U xi, and noise times the rest."""
        if self.basis is None or self.rest is None or noise is None:
            return offset * self.spread
        with torch.autocast(offset.device.type, enabled=False):
            correlated = torch.tensordot(offset.to(self.basis.dtype), self.basis, 1)
        return correlated + noise * self.rest


def diagonal(rows: Float[Tensor, "m 2 c"]) -> Uncertainty:
    """Independent channels: sqrt(biased variance over the rows + 1e-6).

    >>> diagonal(torch.tensor([[[0.0], [1.0]], [[2.0], [1.0]]])).spread.flatten().tolist()
    [1.0000004768371582, 0.0010000000474974513]
    """
    return Uncertainty((rows.var(0, correction=0) + EPS).sqrt())


def low_rank(rows: Float[Tensor, "m 2 c"], rank: int) -> Uncertainty:
    """Covariance U U' + D: U spans the leading directions of the rows, D is the diagonal rest.

    >>> u = low_rank(torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[2.0, 4.0], [1.0, 1.0]]]), 1)
    >>> u.basis.abs().round(decimals=3).tolist(), u.rest.max().item() < 1e-3
    ([[[1.0, 2.0], [0.0, 0.0]]], True)
    """
    centred = (rows - rows.mean(0)).flatten(1) / len(rows) ** 0.5
    # Of the left singular vectors u the rows s v' are u' centred: only a small matrix is resolved.
    _, vectors = torch.linalg.eigh(centred @ centred.T)
    basis = (vectors[:, -rank:].T @ centred).unflatten(1, rows.shape[1:])
    variance = rows.var(0, correction=0)
    rest = (variance - basis.square().sum(0)).clamp(min=0).sqrt()
    return Uncertainty((variance + EPS).sqrt(), basis, rest)


def group_means(
    rows: Float[Tensor, "n 2 c"], group: Int[Tensor, " n"], num_groups: int
) -> Float[Tensor, "g 2 c"]:
    """The mean of the rows of each group.

    >>> group_means(torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 0, 1]), 2)
    tensor([2., 7.])
    """
    total = rows.new_zeros(num_groups, *rows.shape[1:]).index_add_(0, group, rows)
    count = group.bincount(minlength=num_groups).to(rows.dtype)
    return total / count.reshape(-1, *([1] * (rows.ndim - 1)))


@dataclass(slots=True)
class Seen:
    """What a clean pass showed.

    Attributes:
        known: The uncertainty of each place.
        first: The first of the places, and the features there.
    """

    known: dict[str, Uncertainty] = field(default_factory=dict)
    first: tuple[str, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Shifts:
    """A family of perturbations of one batch: offsets, by place, say which member.

    Attributes:
        known: The uncertainty of each place.
        noise: (m, 2, c) what fills the diagonal rest of a low-rank place.
        group: (n,) which of the m offsets each image takes.
        floor: The least share of its own standard deviation that a channel keeps, or None.
    """

    known: Mapping[str, Uncertainty]
    noise: Mapping[str, Tensor]
    group: Int[Tensor, " n"]
    floor: float | None

    def changes(self, offsets: Mapping[str, Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
        """What happens to the features at each place."""
        return {
            place: partial(shifted, shift=shift[self.group], floor=self.floor)
            for place, shift in self._shifts(offsets).items()
        }

    def size(self, offsets: Mapping[str, Tensor]) -> Float[Tensor, " 2"]:
        """Root mean square of the shifts of mu and of sigma in spreads, mean over the places."""
        shares = [
            shift.detach() / self.known[place].spread
            for place, shift in self._shifts(offsets).items()
        ]
        return torch.stack([share.square().mean((0, 2)).sqrt() for share in shares]).mean(0)

    def _shifts(self, offsets: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "m 2 c"]]:
        return {
            place: uncertainty.shift(offsets[place], self.noise.get(place))
            for place, uncertainty in self.known.items()
        }


class Uncertainties(nn.Module):
    """The uncertainty of each place, as seen in a clean pass, with what is kept between passes.

    Args:
        widths: Number of channels of each place; needed for what is kept only.
        reference: Whose spread: of images, of experiments' means, or a running estimate.
        rank: Of the low-rank structure; None for independent channels.
        ema: Weight of the past in a running estimate.
        learned: Whether Gaussian offsets are scaled by learned intensities.

    Attributes:
        log_scale: (2, c) logarithms of the learned intensities of each place.
    """

    num_seen: Tensor

    def __init__(
        self,
        widths: Mapping[str, int],
        *,
        reference: Reference,
        rank: int | None,
        ema: float,
        learned: bool,
    ) -> None:
        super().__init__()
        self.reference, self.rank, self.ema = reference, rank, ema
        self.running = reference.startswith("ema")
        self.log_scale = nn.ParameterDict(
            {place: torch.zeros(2, width) for place, width in widths.items()} if learned else {}
        )
        if self.running:
            self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))
            for place, width in widths.items():
                self.register_buffer(f"spread_{place}", torch.zeros(2, width))

    def watch(
        self, places: tuple[str, ...], domain: Int[Tensor, " n"], seen: Seen
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """Functions for a pass in train mode: they change nothing and fill `seen`, place by place.

        A running estimate takes in what they see.
        """

        def look(x: Tensor, place: str) -> Tensor:
            seen.first = seen.first or (place, x)
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                seen.known[place] = self._of(place, torch.stack(statistics(x), 1), domain)
            return x

        if self.running:
            self.num_seen += 1
        return {place: partial(look, place=place) for place in places}

    def _of(self, place: str, rows: Float[Tensor, "n 2 c"], domain: Tensor) -> Uncertainty:
        if self.reference.endswith("between_experiment"):
            codes, group = domain.unique(return_inverse=True)
            if len(codes) > 1:
                rows = group_means(rows, group, len(codes))
            else:
                warnings.warn(
                    "a batch of one experiment has no spread between experiments; that between "
                    "its images takes its place (--train.sampler domains draws several)",
                    EvenfieldWarning,
                    stacklevel=2,
                )
        if self.rank is not None:
            return low_rank(rows, self.rank)
        if not self.running:
            return diagonal(rows)
        spread = self.get_buffer(f"spread_{place}")
        newest = torch.where(self.num_seen == 1, 1.0, 1 - self.ema).to(spread.dtype)
        spread.lerp_(diagonal(rows).spread, newest)
        return Uncertainty(spread.clone())

    def scaled(
        self, place: str, offset: Float[Tensor, "m 2 c"], reversal: float
    ) -> Float[Tensor, "m 2 c"]:
        """Offsets times the learned intensities; these climb, as their gradient is reversed."""
        if place not in self.log_scale:
            return offset
        return offset * reverse_gradient(self.log_scale[place], reversal).exp()

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """Keep the learned intensities between exp(-2) and exp(2); they start at 1."""
        for log_scale in self.log_scale.values():
            log_scale.clamp_(-2, 2)
