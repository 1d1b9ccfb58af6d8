"""The words that rooms exchange.

Axis letters: n images, c channels, h w pixels, d features, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from evenfield.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from torch import Tensor

UNKNOWN = -1
"""The code of a label that is not known (negative controls, new plates)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A mini-batch on one device.

    Attributes:
        image: (n, c, h, w) floats, normalised.
        label: (n,) int64 class codes; -1 is unknown and never enters a loss.
        is_control: (n,) bool, negative controls.
        context: (n,) int64 codes of the unit whose statistics are shared (mostly the plate).
        domain: (n,) int64 codes of the unit that carries the batch effect.
        row: (n,) int64 rows of the manifest: any other column is a join away.
        global_views: (n, 2, c, g, g) crops of most of an image, the second one of the partner; only
            where a method asks for views, as the next three.
        local_views: (n, l, c, s, s) crops of a part: the first half of the image, the second of its
            partner.
        partner: (n,) int64 row of the second image; the own row where there are no pairs.
        partner_domain: (n,) int64 its domain.
        seed: what a method draws from, through `seeds.generator(batch.seed, purpose)`.
    """

    image: Tensor
    label: Tensor
    is_control: Tensor
    context: Tensor
    domain: Tensor
    row: Tensor
    global_views: Tensor | None = None
    local_views: Tensor | None = None
    partner: Tensor | None = None
    partner_domain: Tensor | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: Any) -> Batch:
        """The items at `index` (a slice, a bool mask or integer codes), with the same seed."""
        return replace(self, **{name: getattr(self, name)[index] for name in self._tensors()})

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True) for name in self._tensors()
        }
        return replace(self, **moved)

    @property
    def scored(self) -> Tensor:
        """(n,) bool, the images with a known label that are no controls."""
        return (self.label != UNKNOWN) & ~self.is_control

    @property
    def views(self) -> list[Tensor]:
        """The views by size, (n, v, c, s, s) each: the global ones, then the local ones if any.

        Raises:
            InputError: The batch was made for a method that asks for no views.
        """
        if self.global_views is None:
            raise InputError(
                "the batch holds no views", fix="read it with `Needs(views=True)` of the method"
            )
        return [views for views in (self.global_views, self.local_views) if views is not None]

    def _tensors(self) -> list[str]:
        return [
            field.name
            for field in fields(self)
            if field.name != "seed" and getattr(self, field.name) is not None
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a method asks of a mini-batch.

    Attributes:
        domains: The least number of domains in a batch.
        controls: Whether negative controls of the batch's own context must be in it.
        one_context: Whether a batch is an episode: all its images from one context.
        smallest_side: The least height and width of an image in pixels.
        unit: Whether pixels must lie in 0 to 1 (`View.normalise` of `unit`), not be standardised.
        views: Whether global views must be in it, two of each item.
        local_views: Whether local views are wanted, too.
        pairs: Whether the second image of an item should come from another domain.
    """

    domains: int = 1
    controls: bool = False
    one_context: bool = False
    smallest_side: int = 8
    unit: bool = False
    views: bool = False
    local_views: bool = False
    pairs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a method returns: the scalar to minimise and its named parts (for logs and tests)."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The unlabelled images of ONE unit (a plate) that an adapter may learn from.

    Attributes:
        image: (n, c, h, w) normalised floats; may be empty (0, c, h, w).
        is_control: (n,) bool, which of them are negative controls.
        name: The unit's name, for messages.
    """

    image: Tensor
    is_control: Tensor
    name: str = ""

    @property
    def controls(self) -> Tensor:
        """The control images, (n_c, c, h, w)."""
        return self.image[self.is_control]

    @property
    def perturbed(self) -> Tensor:
        """The other images, (n_p, c, h, w)."""
        return self.image[~self.is_control]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profiles:
    """A matrix of numbers and what is known about its rows (sites, cells, wells or treatments).

    Attributes:
        features: (n, d) floats, finite unless a reader said otherwise.
        names: The d features.
        metadata: n rows with a RangeIndex; its columns start with `Metadata_`.
    """

    features: np.ndarray
    names: tuple[str, ...]
    metadata: pd.DataFrame

    def __len__(self) -> int:
        return len(self.metadata)

    def __getitem__(self, index: Any) -> Profiles:
        """The rows at `index` (a slice, a bool mask or integer positions)."""
        return replace(
            self,
            features=self.features[index],
            metadata=self.metadata.iloc[index].reset_index(drop=True),
        )

    def with_features(self, features: np.ndarray, names: tuple[str, ...] | None = None) -> Profiles:
        """The same rows with other numbers."""
        return replace(self, features=features, names=self.names if names is None else names)
