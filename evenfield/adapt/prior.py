"""The source's statistics as a prior: a blend that trusts the context the more images it has.

Schneider et al., NeurIPS 2020 (arXiv 2006.16971, eq. 3):

    a = n / (N0 + n);  mu = (1 - a) mu_s + a mu_t;  var = (1 - a) var_s + a var_t

Departures: n and (mu_t, var_t) are those of the whole context, frozen after one pass, and may hold
controls; the target's variance is biased. In other code "alpha" is now the target's weight, now
the source's: here it is a pseudo-count of source images and cannot be mistaken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.adapt.base import ADAPTERS, StatisticsAdapter, check_choice, side_of
from evenfield.errors import InputError
from evenfield.nn.norm import Moments, pool
from evenfield.nn.predictor import Predictor
from evenfield.types import Context


@ADAPTERS.register("prior")
class Prior(StatisticsAdapter):
    """A blend of the source's statistics and the context's.

    Safe with few images. Fails when the plate lies far from the source, which stays in the blend.
    Fallback: if the chosen side of the context is empty, the source's statistics stay.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(StatisticsAdapter.Config):
        """The settings of `prior`.

        Attributes:
            pseudo_count: N0, how many images the source is worth.
            context: Whose statistics are blended in.
        """

        pseudo_count: float = 16.0
        context: Literal["union", "perturbed", "controls"] = "union"

        def __post_init__(self) -> None:
            check_choice("context", self.context, ("union", "perturbed", "controls"))
            if not self.pseudo_count >= 0:
                raise InputError(
                    f"pseudo_count is {self.pseudo_count}", fix="give a number of images, 0 or more"
                )

    def select(self, context: Context) -> Context:
        """The chosen side."""
        chosen = context
        if self.config.context != "union":
            chosen = side_of(context, controls=self.config.context == "controls")
        if not len(chosen.image):
            self.warn(
                context, f"no image for {self.config.context}: the source's statistics are kept"
            )
        return chosen

    def statistics(
        self,
        model: Predictor,
        name: str,
        layer: _BatchNorm,
        perturbed: Moments | None,
        controls: Moments | None,
    ) -> tuple[Tensor, Tensor] | None:
        """(1 - a) source + a context."""
        del model, name
        joint = pool(side for side in (perturbed, controls) if side is not None)
        a = joint.num_images / (self.config.pseudo_count + joint.num_images)
        if layer.running_mean is None or layer.running_var is None:
            return None
        mean = (1 - a) * layer.running_mean + a * joint.mean
        return mean, (1 - a) * layer.running_var + a * joint.var
