"""What training plates teach about statistics: the prior knowledge of the adapter `context`.

For every BatchNorm layer we learn, from the plates that trained the model, how the statistics that
the network was trained with (the target) follow from those of a plate's controls or perturbed
images, and how much such estimates scatter. Everything is in units of the layer's own standard
deviation, so that a gain of the microscope cancels. Only training images and labels are read.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from evenfield.config import TrainConfig
from evenfield.data.dataset import Reader
from evenfield.methods.base import Method
from evenfield.nn.norm import (
    Moments,
    batch_norms,
    gather,
    image_moments,
    mix,
    normalise,
    normalising,
)
from evenfield.nn.predictor import Predictor
from evenfield.seeds import numpy_generator

MAX_PLATES = 16
MAX_IMAGES = 256
MIN_CONTROLS = 8


@torch.inference_mode()
def mean_features(predictor: Predictor, reader: Reader, rows: np.ndarray) -> Tensor:
    """Mean feature vector (d,) of at most 256 rows under the source model."""
    rows = rows[:MAX_IMAGES]
    parts = [
        predictor.features(reader.images(rows[start : start + 128])).float().sum(0)
        for start in range(0, len(rows), 128)
    ]
    return torch.stack(parts).sum(0) / len(rows)


def control_reference(predictor: Predictor, reader: Reader, rows: np.ndarray) -> dict[str, Tensor]:
    """Where the controls of the training plates lie in feature space.

    Args:
        predictor: The trained model, in eval mode.
        reader: Of the training screen.
        rows: Training rows; their contexts' controls are used.

    Returns:
        `mean` (d,) and `scale` (d,), the standard deviation between the plates' mean features;
        empty where fewer than two training plates have controls.
    """
    means = []
    for name in reader.coded.by_context(rows):
        controls = reader.coded.controls_of(name)
        if len(controls):
            means.append(mean_features(predictor, reader, controls))
    if len(means) < 2:
        return {}
    stack = torch.stack(means)
    spread = stack.std(0)
    # The floor keeps a feature that is dead in training from dominating the score.
    scale = spread.clamp(min=0.05 * float(spread.mean()) + 1e-12)
    return {"mean": stack.mean(0).cpu(), "scale": scale.cpu()}


def shift_score(mean: Float[Tensor, " d"], reference: dict[str, Tensor]) -> float | None:
    """How far a plate's controls lie from those of the training plates.

    The root mean square over features of (plate mean - training mean) / (standard deviation
    between training plates): about 1 for a plate like those of the training, 3 for one that is
    three times as far out as they are. None where the training had no reference.
    """
    if not reference:
        return None
    z = (mean.cpu() - reference["mean"]) / reference["scale"]
    return float(z.square().mean().sqrt())


def target_share(method: Method, config: TrainConfig) -> float:
    """The share of perturbed images in the statistics that the network was trained with."""
    if method.native == "controls":
        return 0.0
    if method.native == "union":
        return config.num_perturbed / (config.num_perturbed + config.num_controls)
    return 1.0


def calibrate(
    method: Method, reader: Reader, rows: np.ndarray, config: TrainConfig
) -> dict[str, dict[str, Tensor]]:
    """Per layer: offsets from controls and perturbed images to the target, and their scatter.

    Args:
        method: Trained, in eval mode.
        reader: Of the training screen.
        rows: Training rows.
        config: The training settings (they fix the share of perturbed images).

    Returns:
        By layer: `cT_m, cT_v, pT_m, pT_v, cP_m, cP_v` (c,), offsets of mean and log-variance from
        controls (c) or perturbed (p) to target (T) or perturbed (P), and `tau_*`, their variances
        between plates; `noise_c, noise_p, class` and `noise_p_mean, class_mean`, the variance of
        one image's contribution within controls, within and between classes. Empty where no
        training plate has eight controls, or where the network has no BatchNorm.
    """
    if not batch_norms(method.predictor):
        return {}
    share = target_share(method, config)
    rng = numpy_generator(config.seed, "calibrate")
    found: dict[str, list[dict[str, Tensor]]] = {}
    plates = [
        (perturbed, controls)
        for name, perturbed in reader.coded.by_context(rows).items()
        if len(controls := reader.coded.controls_of(name)) >= MIN_CONTROLS
        and len(perturbed) >= MIN_CONTROLS
    ]
    for place in rng.permutation(len(plates))[:MAX_PLATES]:
        perturbed, controls = (rng.permutation(part)[:MAX_IMAGES] for part in plates[place])
        label = torch.from_numpy(reader.coded.label[perturbed])
        image = reader.images(np.concatenate([perturbed, controls]))

        def rule(name: str, layer: _BatchNorm, x: Tensor, label: Tensor = label) -> Tensor:
            mean_nc, var_nc = image_moments(x)
            quantities, target = _of_plate(mean_nc, var_nc, label.to(x.device), share)
            found.setdefault(name, []).append(quantities)
            return normalise(layer, x, *target)

        with torch.inference_mode(), normalising(method.predictor, rule):
            method.predictor(image)
    return {
        name: {key: value.cpu().clone() for key, value in _over_plates(parts).items()}
        for name, parts in found.items()
    }


def _of_plate(
    mean_nc: Float[Tensor, "n c"],
    var_nc: Float[Tensor, "n c"],
    label: Int[Tensor, " p"],
    share: float,
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """One plate's offsets and scatter at one layer, and its target statistics."""
    num = len(label)
    perturbed = gather(mean_nc[:num], var_nc[:num])
    controls = gather(mean_nc[num:], var_nc[num:])
    target = mix(perturbed, controls, share)
    quantities = {
        "cT_m": (target[0] - controls.mean) / deviation(controls.var),
        "cT_v": log_ratio(target[1], controls.var),
        "pT_m": (target[0] - perturbed.mean) / deviation(perturbed.var),
        "pT_v": log_ratio(target[1], perturbed.var),
        "cP_m": (perturbed.mean - controls.mean) / deviation(controls.var),
        "cP_v": log_ratio(perturbed.var, controls.var),
    }
    unit = target[1].clamp(min=1e-8)
    within_m, between_m, within_v, between_v = _by_class(
        mean_nc[:num], var_nc[:num], perturbed, label, unit
    )
    one_class = torch.zeros(len(mean_nc) - num, dtype=torch.long, device=mean_nc.device)
    control_m, _, control_v, _ = _by_class(mean_nc[num:], var_nc[num:], controls, one_class, unit)
    quantities |= {
        "noise_c": control_m + control_v,
        "noise_p": within_m + within_v,
        "class": between_m + between_v,
        "noise_p_mean": within_m,
        "class_mean": between_m,
        "num_c": torch.tensor(float(len(mean_nc) - num)),
        "num_p": torch.tensor(float(num)),
    }
    return quantities, target


def _by_class(
    mean_nc: Tensor, var_nc: Tensor, pooled: Moments, label: Tensor, unit: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Variance of one image's contribution, within and between classes, of mean and log-variance.

    Means are in units of the target's variance; the contribution of an image to the log-variance
    is (its variance + its squared distance from the mean) / variance, with weight 1/2 as in the
    divergence of two Gaussians.
    """
    effect_v = (var_nc + (mean_nc - pooled.mean).square()) / pooled.var.clamp(min=1e-8)
    result = []
    for value, scale in ((mean_nc, unit), (effect_v, torch.full_like(unit, 2.0))):
        classes = [value[label == code] for code in label.unique()]
        weight = [len(part) / len(value) for part in classes]
        overall = value.mean(0)
        within = sum(w * part.var(0, correction=0) for w, part in zip(weight, classes, strict=True))
        between = sum(
            w * (part.mean(0) - overall).square() for w, part in zip(weight, classes, strict=True)
        )
        result += [(within / scale).mean(), (between / scale).mean()]
    return result[0], result[1], result[2], result[3]


def _over_plates(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Means over plates; `tau_*` is the variance of each offset between plates."""
    result = {
        name: torch.stack([part[name] for part in parts]).float().mean(0)
        for name in parts[0]
        if not name.startswith("num")
    }
    num_c = float(torch.stack([part["num_c"] for part in parts]).mean())
    num_p = float(torch.stack([part["num_p"] for part in parts]).mean())
    for offset in ("cT", "pT", "cP"):
        spread = torch.zeros(())
        if len(parts) > 1:
            for moment, weight in (("m", 1.0), ("v", 0.5)):
                values = torch.stack([part[f"{offset}_{moment}"] for part in parts]).float()
                spread = spread + weight * values.var(0).mean().cpu()
        sampling = float(result["noise_c"]) / num_c + float(result["noise_p"]) / num_p
        result[f"tau_{offset}"] = (spread - sampling).clamp(min=0.0)
    return result


def deviation(var: Tensor) -> Tensor:
    """Standard deviation, floored against channels that are dead."""
    return var.clamp(min=1e-8).sqrt()


def log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """ln(a / b) of variances, floored against channels that are dead and cut at a factor 100."""
    return (a.clamp(min=1e-8) / b.clamp(min=1e-8)).log().clamp(min=-4.6, max=4.6)
