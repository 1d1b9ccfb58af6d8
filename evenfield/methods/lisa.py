"""LISA: mix images of one class from two experimental batches, so that only the batch is mixed.

Yao, Wang, Li, Zhang, Liang, Zou and Finn, "Improving out-of-distribution robustness via selective
augmentation", ICML 2022, https://arxiv.org/abs/2201.00299. Defaults are those of the authors' code,
of which no line was used.

Where this file departs from the paper or from the authors' code, and why:
    selection      Pairs have the same label and different domains, as in the authors' commands for
                   Camelyon17 and RxRx1. The paper's other pairs (same domain, different labels,
                   for groups within a data set) are not offered.
    partners       The authors fetch a partner for every image from the whole data set. Here it is
                   drawn from the batch, and an image whose class is in no other domain of it stays
                   as it is; the part `mixed` of the loss logs the share that found one. With many
                   classes in small batches that is nearly none.
    mix            The authors' code takes CutMix on images (one box a batch), and offers mixup (one
                   share an image); so do we. Labels are the same, so none is mixed.
    who            Controls and images without a label pass unmixed. One domain alone, and every
                   batch in eval mode, is treated as by ERM.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evenfield.errors import EvenfieldWarning
from evenfield.methods.base import METHODS, Method, check_range, cross_entropy
from evenfield.nn.boxes import draw_boxes
from evenfield.nn.mixing import blend, mixable
from evenfield.seeds import generator, numpy_generator
from evenfield.types import Batch, Losses, Needs


@METHODS.register("lisa")
class LISA(Method):
    """Cross-entropy of mixes of two images with the same label from different domains."""

    needs: ClassVar[Needs] = Needs(domains=2)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Method.Config):
        """The hyper-parameters of LISA.

        Attributes:
            mix: `cutmix` pastes a box of the partner, `mixup` blends the two.
            alpha: The share that is kept is drawn from Beta(alpha, alpha).
            p: Probability that a batch is mixed.
        """

        mix: Literal["cutmix", "mixup"] = "cutmix"
        alpha: float = 2.0
        p: float = 1.0

        def __post_init__(self) -> None:
            check_range("alpha", self.alpha, 1e-3)
            check_range("p", self.p, 0, 1)

    def losses(self, batch: Batch, *, progress: float) -> Losses:
        """Mean CE(f(mix of x_i and x_j), y), y_i = y_j = y and d_i != d_j."""
        del progress
        image, partner = batch.image, np.arange(len(batch))
        random = numpy_generator(batch.seed, "lisa")
        if self.training and random.random() < self.config.p:
            partner = draw_partners(random, batch)
            image = self._mix(random, batch, torch.from_numpy(partner).to(image.device))
        risk = cross_entropy(self.predictor(image), batch.label)
        mixed = risk.new_tensor((partner != np.arange(len(batch))).mean())
        return Losses(total=risk, parts={"risk": risk, "mixed": mixed})

    def _mix(
        self, random: np.random.Generator, batch: Batch, partner: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        image, config = batch.image, self.config
        num_shares = len(batch) if config.mix == "mixup" else 1
        kept = torch.from_numpy(random.beta(config.alpha, config.alpha, num_shares))
        if config.mix == "mixup":
            return blend(image, partner, kept.to(image.device))
        height, width = image.shape[2:]
        box = draw_boxes(kept, height, width, generator(batch.seed, "lisa box"))
        return torch.where(box.to(image.device), image[partner], image)


def draw_partners(random: np.random.Generator, batch: Batch) -> Int[np.ndarray, " n"]:
    """For each item one with the same label in another domain, each as likely; else itself."""
    partner, items = np.arange(len(batch)), mixable(batch)
    label, domain = (values.cpu().numpy()[items] for values in (batch.label, batch.domain))
    other_domain = domain[:, None] != domain[None, :]
    pairs = other_domain & (label[:, None] == label[None, :])
    if pairs.any():
        partner[items] = items[one_of(random, pairs)]
    elif other_domain.any():
        warnings.warn(
            "lisa: no two images of this batch share a label across domains; it is not mixed "
            "(larger batches, or fewer classes in a batch, would help)",
            EvenfieldWarning,
            stacklevel=4,
        )
    return partner


def one_of(
    random: np.random.Generator, candidates: Bool[np.ndarray, "n n"]
) -> Int[np.ndarray, " n"]:
    """For each item (row) one of its candidates (columns), each as likely; itself if it has none.

    >>> one_of(np.random.Generator(np.random.PCG64(0)), np.array([[False, True], [False, False]]))
    array([1, 1])
    """
    # A draw in (0, 1] is never that of a non-candidate, 0.
    drawn = (candidates * (1 - random.random(candidates.shape))).argmax(1)
    return np.where(candidates.any(1), drawn, np.arange(len(candidates)))
