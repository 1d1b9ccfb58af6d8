"""T3A: the head's rows become the centres of the new plate's own confident features.

Iwasawa and Matsuo, NeurIPS 2021, "Test-Time Classifier Adjustment Module":

    supports start as the rows of the head; every feature f joins those of its pseudo-label;
    per class the F of lowest entropy stay;  c_k = normalise(sum of normalised supports)
    score_k = f . c_k

Departures: it fits on the perturbed images of the context and then freezes, where the paper
predicts image by image as supports come in; `keep=None` keeps everything (released code slices off
the highest entropy of each class); a class left without support keeps its own row of the head,
normalised. As in the paper the score has no bias and no scale, so probabilities are not calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from evenfield.adapt.base import (
    ADAPTERS,
    Adapted,
    Adapter,
    check_choice,
    checked,
    perturbed_outputs,
)
from evenfield.errors import InputError
from evenfield.nn.predictor import Predictor
from evenfield.types import Context


@ADAPTERS.register("t3a")
class T3A(Adapter):
    """Prototypes of the context's perturbed images in place of the head.

    Fails when the pseudo-labels are wrong. Fallback: without a perturbed image the head stays.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Adapter.Config):
        """The settings of `t3a`.

        Attributes:
            keep: F, supports kept for each class; None keeps all.
            statistics: The adapter whose statistics the normalisation layers stand on.
            chunk: Images that go through the network in one pass.
        """

        keep: int | None = 20
        statistics: Literal["source", "batch", "controls", "union"] = "source"
        chunk: int = 512

        def __post_init__(self) -> None:
            check_choice("statistics", self.statistics, ("source", "batch", "controls", "union"))
            if self.keep is not None and self.keep < 1:
                raise InputError(f"keep is {self.keep}", fix="give 1 or more, or None for all")

    def fit(self, model: Predictor, context: Context) -> Adapted:
        """Prototypes from the features of the context.

        Raises:
            InputError: The head is not linear.
        """
        if not isinstance(model.head, nn.Linear):
            raise InputError(
                f"t3a needs a linear head, this model has a {type(model.head).__name__}",
                fix="choose another adapter",
            )
        adapted = ADAPTERS[self.config.statistics]().fit(model, checked(context)).model
        if not len(context.perturbed):
            self.warn(context, "no perturbed image: the head stays as it is")
            return Adapted(self, adapted, model)
        features, _ = perturbed_outputs(adapted, context, self.config.chunk)
        with torch.inference_mode(False), torch.no_grad():
            head = model.head.weight.detach().float()
            bias = None if model.head.bias is None else model.head.bias.detach().float()
            centre = prototypes(features, head, bias, self.config.keep)
        return Adapted(self, adapted, model, {"prototype": centre})

    def output(
        self,
        features: Float[Tensor, "n d"],
        logits: Float[Tensor, "n k"],
        memory: dict[str, Tensor],
    ) -> Float[Tensor, "n k"]:
        """Logarithm of softmax(f . c)."""
        score = features.float() @ memory["prototype"].T if memory else logits
        return score.log_softmax(1)


def prototypes(
    features: Float[Tensor, "n d"],
    head: Float[Tensor, "k d"],
    bias: Float[Tensor, " k"] | None,
    keep: int | None,
) -> Float[Tensor, "k d"]:
    """Unit prototypes of every class from supports of low entropy.

    >>> prototypes(torch.empty(0, 2), torch.tensor([[2.0, 0.0], [0.0, 3.0]]), None, 1).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    supports = torch.cat([head, features])
    log_p = F.linear(supports, head, bias).log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    label = log_p.argmax(1)
    unit = F.normalize(supports, dim=1)
    centres = []
    for code in range(len(head)):
        mine = (label == code).nonzero()[:, 0]
        kept = mine[entropy[mine].argsort(stable=True)[:keep]]
        centres.append(unit[kept].sum(0) if len(kept) else unit[code])
    return F.normalize(torch.stack(centres), dim=1)
