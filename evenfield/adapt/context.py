"""Choose, layer by layer, how far to trust source, controls and perturbed images of a plate.

Ours; no paper. The statistics that a network wants on a plate (the target: those of the mixture
that it was trained with) can be estimated in three ways, each wrong in its own manner:

    source      the running statistics: no noise, but the plate may be elsewhere;
    controls    the plate's controls, moved by the offset known from training plates: unbiased,
                noisy when controls are few;
    perturbed   the plate's perturbed images, moved likewise: low noise when there are many, but
                biased when their class mix is not that of the training.

For independent estimates the best linear combination weighs each by one over its mean squared
error. Errors are of (mean / sd) and of log-variance / sqrt(2), as in the divergence of two
Gaussians, averaged over the channels of a layer. With noise and class terms known from training
plates (`train.calibrate`), n_c controls, n_p perturbed images and e(a, b) the squared distance:

    m_controls   = noise_c / n_c + tau
    expected     = (noise_p + class) / n_p
    predicted    = what the controls predict for the perturbed images
    bias         = max(0, e(perturbed, predicted) - expected - noise_c / n_c - tau)
    collapse     = max(0, class - class terms seen in the context)          # one class dominates
    m_perturbed  = expected + caution * max(bias, collapse) + tau
    m_source     = max(0, e(source, combination of the two) - error of that combination)

A class-aligned error costs more accuracy than its square says: it removes the very signal that the
head reads. `caution` is the factor for it.

Departs from the formula sketched for it (specification of CS-ARM-BN, 4.2) in that the target is
the mixture of the training and not the perturbed mean, in that variances take part, and in the
collapse term, which also serves plates without controls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.adapt.base import ADAPTERS, StatisticsAdapter
from evenfield.nn.norm import Moments
from evenfield.nn.predictor import Predictor

Pair = tuple[Tensor, Tensor]


@ADAPTERS.register("context")
class ContextAdapter(StatisticsAdapter):
    """Source, controls and perturbed images, weighted by estimated mean squared error.

    Falls back to the source's statistics, with a warning, for a model without calibration.
    """

    uses_controls: ClassVar[bool] = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(StatisticsAdapter.Config):
        """The settings of `context`.

        Attributes:
            caution: Factor of the class-aligned error of the perturbed images.
        """

        caution: float = 4.0

    def statistics(
        self,
        model: Predictor,
        name: str,
        layer: _BatchNorm,
        perturbed: Moments | None,
        controls: Moments | None,
    ) -> Pair | None:
        """Mean and variance (c,) of a layer; None keeps the source's."""
        known = model.calibration.get(name)
        if not known or layer.running_mean is None or layer.running_var is None:
            return None
        source = (layer.running_mean, layer.running_var)
        estimates: list[tuple[Pair, Tensor]] = []
        if controls is not None:
            error = known["noise_c"] / controls.num_images + known["tau_cT"]
            estimates.append((moved(controls, known["cT_m"], known["cT_v"]), error))
        if perturbed is not None:
            target = moved(perturbed, known["pT_m"], known["pT_v"])
            # The unit of the class terms; a collapsed class mix shrinks the perturbed variance.
            unit = estimates[0][0][1] if estimates else target[1]
            error = self._error_of_perturbed(known, perturbed, controls, unit)
            estimates.append((target, error))
        here, error = combined(estimates)
        error_of_source = (distance(source, here) - error).clamp(min=0.0)
        return combined([(here, error), (source, error_of_source)])[0]

    def _error_of_perturbed(
        self,
        known: dict[str, Tensor],
        perturbed: Moments,
        controls: Moments | None,
        unit: Tensor,
    ) -> Tensor:
        num = perturbed.num_images
        expected = (known["noise_p"] + known["class"]) / num
        if num > 1:
            seen = perturbed.spread * (num / (num - 1))
            seen_class = (seen / unit.clamp(min=1e-8)).mean() - known["noise_p_mean"]
            lost = 1 - seen_class / known["class_mean"].clamp(min=1e-8)
        else:
            lost = torch.ones(())  # one image tells nothing of its class's offset
        bias = known["class"] * lost.clamp(min=0.0, max=1.0)
        if controls is not None:
            predicted = moved(controls, known["cP_m"], known["cP_v"])
            noise = known["noise_c"] / controls.num_images + known["tau_cP"]
            gap = distance((perturbed.mean, perturbed.var), predicted) - expected - noise
            bias = torch.maximum(bias, gap)
        return expected + self.config.caution * bias.clamp(min=0.0) + known["tau_pT"]


def moved(at: Moments, offset_m: Tensor, offset_v: Tensor) -> Pair:
    """Statistics moved by an offset in units of their own standard deviation."""
    return at.mean + offset_m * at.var.clamp(min=1e-8).sqrt(), at.var * offset_v.exp()


def distance(a: Pair, b: Pair) -> Tensor:
    """Mean over channels of (gap of means)^2 / variance of b + (log ratio of variances)^2 / 2.

    >>> one, two = torch.ones(1), torch.full((1,), 2.0)
    >>> distance((one, one), (two, one)).item()
    1.0
    """
    var = b[1].clamp(min=1e-8)
    gap = (a[0] - b[0]).square() / var
    ratio = (a[1].clamp(min=1e-8) / var).log().clamp(min=-4.6, max=4.6)
    return (gap + 0.5 * ratio.square()).mean()


def combined(estimates: list[tuple[Pair, Tensor]]) -> tuple[Pair, Tensor]:
    """The combination of independent estimates with the least squared error, and that error."""
    precision = torch.stack([1 / error.clamp(min=1e-9) for _, error in estimates])
    weight = precision / precision.sum()
    mean = sum(w * pair[0] for w, (pair, _) in zip(weight, estimates, strict=True))
    log_var = sum(
        w * pair[1].clamp(min=1e-12).log() for w, (pair, _) in zip(weight, estimates, strict=True)
    )
    assert isinstance(mean, Tensor)
    assert isinstance(log_var, Tensor)
    return (mean, log_var.exp()), 1 / precision.sum()
