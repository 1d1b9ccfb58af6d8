"""A classifier as the rest of the house sees it: an encoder and a head."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from evenfield.types import Context


class Predictor(nn.Module):
    """Images to logits through features.

    Attributes:
        backbone: (n, c, h, w) to features (n, d).
        head: (n, d) to logits (n, k).
        calibration: What training plates taught about the statistics of each normalisation layer
            (`train.calibrate`); read by the adapter `context`; empty until then.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.calibration: dict[str, dict[str, Tensor]] = {}

    def features(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The features before the head."""
        return self.backbone(image)

    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self.features(image))

    def condition(self, context: Context) -> Predictor:
        """A copy that has taken in the context in the way its method was trained for.

        Methods with a learned adaptation rule (ARM-CML, ARM-LL) override this; for the others it
        is the model itself.
        """
        del context
        return self
