"""A classifier behind the encoders of ContriMix: it sees each image as they reconstruct it."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.nn.absorbance import Signal
from evenfield.nn.predictor import Predictor
from evenfield.nn.unmixing import AttributeEncoder, ContentEncoder, generate
from evenfield.types import Context


class Reconstructing(Predictor):
    """A classifier that sees an image as its encoders reconstruct it.

    Attributes:
        inner: The classifier behind; its backbone and head are this one's.
        content: Signals (n, c, h, w) to content maps (n, s, h, w).
        attribute: Signals to attribute matrices (n, c, s).
        signal: The space in which content and attribute are mixed.
    """

    def __init__(
        self,
        inner: Predictor,
        content: ContentEncoder,
        attribute: AttributeEncoder,
        *,
        signal: Signal,
        test_input: str,
        normalise: str,
    ) -> None:
        nn.Module.__init__(self)  # backbone and head live in `inner`, once
        self.inner, self.content, self.attribute = inner, content, attribute
        self.signal, self.test_input, self.normalise = signal, test_input, normalise
        self.calibration = {}

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The inner classifier's encoder."""
        return self.inner.backbone

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """The inner classifier's head."""
        return self.inner.head

    def shown(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Images in 0 to 1 as the inner classifier wants them."""
        return standardised(image) if self.normalise == "image" else image

    def mix(
        self, image: Float[Tensor, "n c h w"], donor: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """The content of each image under the attribute of its donor, in 0 to 1."""
        signal = self.signal.enter(image)
        other = signal if donor is image else self.signal.enter(donor)
        return self.signal.leave(generate(self.attribute(other), self.content(signal)))

    def reconstruct(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Each image from its own content and attribute, in 0 to 1."""
        return self.mix(image, image)

    def seen(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """What the inner classifier sees of images at test."""
        return self.shown(image if self.test_input == "original" else self.reconstruct(image))

    def features(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The inner classifier's features."""
        return self.inner.features(self.seen(image))

    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The inner classifier's logits."""
        return self.inner(self.seen(image))

    def condition(self, context: Context) -> Reconstructing:
        """A copy whose inner classifier has taken in the context, as it sees it."""
        conditioned = copy.copy(self)
        conditioned._modules = dict(self._modules)
        with torch.no_grad():
            parts = [self.seen(part) for part in context.image.split(128)]
        image = torch.cat(parts) if len(context.image) else context.image
        conditioned.inner = self.inner.condition(replace(context, image=image))
        return conditioned


def standardised(image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Each image and channel with mean 0 and standard deviation 1; a flat one (below 1e-6) is 0.

    >>> standardised(torch.tensor([1.0, 3.0, 5.0, 5.0]).reshape(1, 2, 1, 2)).flatten()
    tensor([-1.,  1.,  0.,  0.])
    """
    image = image.float()
    std, mean = torch.std_mean(image, (2, 3), correction=0, keepdim=True)
    return (image - mean) / torch.where(std > 1e-6, std, 1.0)
