"""Statistics of perturbed images and controls of the plate together: CS-ARM-BN's test rule.

Sanchez-Fernandez, Pinetz, Zellinger and Klambauer, arXiv 2604.20824 (ICML 2026).

    mu = mean over all N = n_p + n_c images and pixels,  var = their biased variance

Departures: frozen after one pass, so a prediction does not depend on its companions; moments of
several chunks are pooled; a plate without controls falls back with a warning where the released
code stops; every control is used, where the released code draws 128 anew on every pass. `matched`
and `weighted` are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.adapt.base import ADAPTERS, StatisticsAdapter, check_choice
from evenfield.errors import InputError
from evenfield.nn.norm import Moments, mix, pool
from evenfield.nn.predictor import Predictor
from evenfield.seeds import generator
from evenfield.types import Context


@ADAPTERS.register("union")
class Union(StatisticsAdapter):
    """Statistics of the whole context.

    Shrinks the bias of the class mix by n_p / N against the perturbed images alone. Fails when the
    perturbed images dominate under label shift, and when the ratio is far from the trained one.
    Fallback: with fewer than `min_controls` controls the context is taken as it is, which without
    any control is `batch`; without perturbed images it is `controls`; without images the source.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(StatisticsAdapter.Config):
        """The settings of `union`.

        Attributes:
            ratio: `as_is` weighs every image alike; `matched` draws from the side in excess until
                the mixture is the trained one; `weighted` gives the perturbed a fixed share.
            trained_ratio: n_p / (n_p + n_c) of an episode in training, for `matched`.
            share: The share of the perturbed images' statistics, for `weighted`.
            min_controls: With fewer controls the ratio is left as it is, with a warning.
            seed: What `matched` draws with.
        """

        ratio: Literal["as_is", "matched", "weighted"] = "as_is"
        trained_ratio: float = 1 / 3
        share: float = 1 / 3
        min_controls: int = 2
        seed: int = 0

        def __post_init__(self) -> None:
            check_choice("ratio", self.ratio, ("as_is", "matched", "weighted"))
            if not (0 < self.trained_ratio < 1 and 0 <= self.share <= 1):
                raise InputError(
                    f"trained_ratio is {self.trained_ratio}, share is {self.share}",
                    fix="give a trained_ratio between 0 and 1, and a share from 0 to 1",
                )

    def select(self, context: Context) -> Context:
        """The whole context; with `matched` a part of the side in excess."""
        num_controls = int(context.is_control.sum())
        num_perturbed = len(context.image) - num_controls
        if num_controls < self.config.min_controls:
            self.warn(
                context,
                f"{num_controls} control image(s), fewer than {self.config.min_controls}: the "
                f"statistics rest on the {num_perturbed} perturbed image(s)",
            )
            return context
        if self.config.ratio != "matched" or num_perturbed == 0:
            return context
        odds = self.config.trained_ratio / (1 - self.config.trained_ratio)
        keep_perturbed = min(num_perturbed, max(1, round(num_controls * odds)))
        keep_controls = min(
            num_controls, max(self.config.min_controls, round(num_perturbed / odds))
        )
        rng = generator(self.config.seed, "union", "matched")
        rows = []
        for flag, keep in ((False, keep_perturbed), (True, keep_controls)):
            side = (context.is_control == flag).nonzero()[:, 0].cpu()
            rows.append(side[torch.randperm(len(side), generator=rng)[:keep]].sort().values)
        row = torch.cat(rows)
        return replace(
            context,
            image=context.image[row.to(context.image.device)],
            is_control=context.is_control[row.to(context.is_control.device)],
        )

    def statistics(
        self,
        model: Predictor,
        name: str,
        layer: _BatchNorm,
        perturbed: Moments | None,
        controls: Moments | None,
    ) -> tuple[Tensor, Tensor] | None:
        """The moments of the mixture, the variance between its sides included."""
        del model, name, layer
        sides = [side for side in (perturbed, controls) if side is not None]
        fixed = self.config.ratio == "weighted" and perturbed is not None and controls is not None
        if fixed and controls.num_images >= self.config.min_controls:  # type: ignore[union-attr]
            return mix(perturbed, controls, self.config.share)  # type: ignore[arg-type]
        if not sides:
            return None
        joint = pool(sides)
        return joint.mean, joint.var
