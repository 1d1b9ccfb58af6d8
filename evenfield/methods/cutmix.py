"""CutMix: train on images with a box from another image, labelled by area.

Yun, Han, Oh, Chun, Choe and Yoo, "CutMix: regularization strategy to train strong classifiers with
localizable features", ICCV 2019, https://arxiv.org/abs/1905.04899.

Where this file departs from the paper or from released code, and why:
    one box        One share and one box for a mini-batch, as in the paper's Algorithm A1 and in the
                   winning entry on RxRx1 (Kaggle 2019).
    partners       Any other labelled image of the batch, of whatever domain.
    box            Its sides are rounded to pixels and cut off at the edges of the image; labels
                   follow the pixels that were really pasted.
    who            Controls and images without a label pass unmixed. In eval mode nothing is mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.boxes import draw_boxes
from evenfield.nn.mixing import mixable, mixed_cross_entropy
from evenfield.seeds import generator, numpy_generator
from evenfield.types import Batch, Losses


@METHODS.register("cutmix")
class CutMix(Method):
    """Cross-entropy of images with a box from a partner, against both labels by area."""

    learns_to: ClassVar[float] = 0.7  # two labels for one image keep the loss above their entropy

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of CutMix.

        Attributes:
            alpha: The share that is kept is drawn from Beta(alpha, alpha); 1 is uniform.
            p: Probability that a batch is mixed.
        """

        alpha: float = 1.0
        p: float = 1.0

        def __post_init__(self) -> None:
            check_range("alpha", self.alpha, 1e-3)
            check_range("p", self.p, 0, 1)

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean of lambda CE(f(x), y_i) + (1 - lambda) CE(f(x), y_j).

        x is x_i with a box of x_j, lambda the share of the pixels that are x_i's.
        """
        del progress
        random = numpy_generator(batch.seed, "cutmix")
        if not self.training or random.random() >= self.config.p:
            risk = cross_entropy(self.predictor(batch.image), batch.label)
            return Losses(total=risk, parts={"risk": risk})
        partner = draw_partners(random, batch)
        kept = torch.tensor([random.beta(self.config.alpha, self.config.alpha)])
        height, width = batch.image.shape[2:]
        box = draw_boxes(kept, height, width, generator(batch.seed, "cutmix box"))
        box = box.to(batch.image.device)
        logits = self.predictor(torch.where(box, batch.image[partner], batch.image))
        keep = (1 - box.float().mean()).expand(len(batch))  # labels follow the pixels
        risk = mixed_cross_entropy(logits, batch.label, partner, keep)
        return Losses(total=risk, parts={"risk": risk})


def draw_partners(random: np.random.Generator, batch: Batch) -> Int[Tensor, " n"]:
    """A permutation of the items that may be mixed; the others are their own partners."""
    partner, items = np.arange(len(batch)), mixable(batch)
    partner[items] = random.permutation(items)
    return torch.from_numpy(partner).to(batch.label.device)
