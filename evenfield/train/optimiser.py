"""How the weights follow the gradient: the optimiser, its learning rate over the run, its reset."""

from __future__ import annotations

import math
from typing import Any

import torch

from evenfield.config import TrainConfig
from evenfield.errors import InputError
from evenfield.methods.base import Method, check_range
from evenfield.nn.distillation import cosine_between


def optimiser_for(method: Method, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration over the method's parameter groups, fused where that is.

    A group may bring an `lr` or a `weight_decay` of its own; the others take those of the run. The
    schedule multiplies each group's own rate (`set_rates`; see also `set_decays`, `clipped`).

    Raises:
        InputError: A setting is out of its range, or the method has nothing to train.
    """
    for name, high in (("warmup", 1.0), ("momentum", 1.0), ("weight_decay", math.inf)):
        check_range(f"--train.{name.replace('_', '-')}", getattr(config, name), 0.0, high)
    if config.clip is not None:
        check_range("--train.clip", config.clip, 1e-12)
    groups = [group for group in method.groups() if len(group["params"])]
    if not groups:
        raise InputError(
            f"{type(method).__name__} has no parameter that asks for a gradient",
            fix="choose options that leave something to train",
        )
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    settings: dict[str, Any] = {
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "fused": fused or None,
    }
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **settings)
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, **settings)


def rate_share(config: TrainConfig, progress: float) -> float:
    """The share of its learning rate that a group has at a point of the run, from 0 to 1.

    Linear from 0 over the share `warmup`; after it 1 (constant), or with p from 0 to 1 over the
    rest of the run 1 - p (linear) or (1 + cos(pi p)) / 2 (cosine).

    >>> half = TrainConfig(schedule="cosine", warmup=0.5)
    >>> [round(rate_share(half, progress), 2) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < config.warmup:
        return progress / config.warmup
    if config.schedule == "constant":
        return 1.0
    rest = 1.0 - config.warmup
    p = (progress - config.warmup) / rest if rest > 0 else 1.0
    return 1.0 - p if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * p))


def set_rates(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Give each group this share of the learning rate that it began with (kept in its state)."""
    for group in optimiser.param_groups:
        group["lr"] = share * group.setdefault("initial_lr", group["lr"])


def set_decays(optimiser: torch.optim.Optimizer, progress: float) -> None:
    """Give groups with a `weight_decay_end` theirs: a cosine from the decay they began with."""
    for group in optimiser.param_groups:
        if "weight_decay_end" in group:
            start = group.setdefault("initial_decay", group["weight_decay"])
            group["weight_decay"] = cosine_between(start, group["weight_decay_end"], progress)


def clipped(optimiser: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The weights whose gradients are clipped together."""
    groups = [group for group in optimiser.param_groups if group.get("clip", True)]
    return [weight for group in groups for weight in group["params"]]


def resets(at: float | None, step: int, total: int) -> bool:
    """Whether this is the first step at a progress of `at` or more.

    A function of the step alone: a resumed run resets neither twice nor never.

    >>> [step for step in range(10) if resets(0.25, step, 10)]
    [3]
    """
    return at is not None and (step - 1) / total < at <= step / total
