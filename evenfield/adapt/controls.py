"""Statistics of the plate's negative controls alone, applied to everything.

The domain-specific BatchNorm of the BEN repository (Lin and Lu 2022, bioRxiv 2022.10.14.512286);
an ablation of CS-ARM-BN (Sanchez-Fernandez et al., arXiv 2604.20824).

Departures: moments are pooled over chunks (released code keeps momentum 0.1 after its reset, so
that a true mean of 5 becomes 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.adapt.base import ADAPTERS, StatisticsAdapter, side_of
from evenfield.nn.norm import Moments
from evenfield.nn.predictor import Predictor
from evenfield.types import Context


@ADAPTERS.register("controls")
class Controls(StatisticsAdapter):
    """Statistics of the negative controls.

    Blind to the class mix of the perturbed images, at the price of the noise of few controls.
    Fallback: with fewer than `min_controls` controls the source's statistics stay. Statistics of
    the perturbed images would be the other way out, but they collapse under label shift, which is
    what a user of this rule guards against.
    """

    uses_perturbed = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(StatisticsAdapter.Config):
        """The settings of `controls`.

        Attributes:
            min_controls: With fewer controls the source's statistics stay.
        """

        min_controls: int = 2

    def select(self, context: Context) -> Context:
        """The controls, or nothing if there are too few."""
        num_controls = int(context.is_control.sum())
        chosen = side_of(context, controls=True)
        if num_controls >= self.config.min_controls:
            return chosen
        self.warn(
            context,
            f"{num_controls} control image(s), fewer than {self.config.min_controls}: "
            "the source's statistics are kept",
        )
        none = slice(0)
        return Context(image=chosen.image[none], is_control=chosen.is_control[none])

    def statistics(
        self,
        model: Predictor,
        name: str,
        layer: _BatchNorm,
        perturbed: Moments | None,
        controls: Moments | None,
    ) -> tuple[Tensor, Tensor] | None:
        """mean_c, var_c."""
        del model, name, layer, perturbed
        return (controls.mean, controls.var) if controls else None
