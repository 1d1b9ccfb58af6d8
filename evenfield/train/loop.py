"""The one training loop: optimiser steps over micro-batches, validation, early stopping, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from evenfield.config import TrainConfig
from evenfield.errors import InputError
from evenfield.methods.base import Method
from evenfield.types import Batch, Losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the loop yields after each optimiser step.

    Attributes:
        step: Optimiser steps done.
        total: Optimiser steps of a run that is not stopped early.
        losses: Mean of each named part over the micro-batches of the step.
        validation: Validation loss where this step ended an epoch, else None.
        best: Whether that is the lowest so far.
    """

    step: int
    total: int
    losses: dict[str, float]
    validation: float | None = None
    best: bool = False


def device_of(name: str) -> torch.device:
    """The device of a configuration.

    Raises:
        InputError: CUDA is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {name!r} is not there", fix="use --train.device cpu or auto")
    return torch.device(name)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of automatic mixed precision; None = float32 throughout."""
    if precision == "float32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None


def optimiser_for(method: Method, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, fused; with decoupled weight decay where it is asked for."""
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    return kind(method.groups(), lr=config.lr, weight_decay=config.weight_decay, fused=True)


def rate(config: TrainConfig, progress: float) -> float:
    """The learning rate at a point of the run.

    >>> rate(TrainConfig(lr=2.0, schedule="cosine"), 0.5)
    1.0
    """
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr


def optimise(
    method: Method,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    total: int,
    accumulate: int = 1,
    dtype: torch.dtype | None = None,
    start: int = 0,
    rate_at: Callable[[float], float] | None = None,
) -> Iterator[dict[str, float]]:
    """Optimiser steps; each sums the gradients of `accumulate` batches, divided by their number.

    Args:
        method: In the mode in which it is handed over (train).
        optimiser: Over the method's parameter groups.
        batches: At least `accumulate * (total - start)` of them.
        total: Steps of the whole run.
        accumulate: Batches for a step; 8 episodes of 8 plates in CS-ARM-BN.
        dtype: Of autocast; None = off.
        start: Steps done before.
        rate_at: Learning rate by progress; None leaves it.

    Yields:
        The named parts of the loss, mean over the step's batches, `total` among them.
    """
    stream = iter(batches)
    for step in range(start, total):
        progress = step / max(total, 1)
        if rate_at is not None:
            for group in optimiser.param_groups:
                group["lr"] = rate_at(progress)
        optimiser.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        for batch in islice(stream, accumulate):
            with torch.autocast(
                batch.image.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
            ):
                losses = method.losses(batch, progress=progress)
            (losses.total / accumulate).backward()
            for name, part in [("total", losses.total), *losses.parts.items()]:
                sums[name] = sums.get(name, torch.zeros(())) + part.detach().float().cpu()
        optimiser.step()
        method.after_step(progress)
        yield {name: value.item() / accumulate for name, value in sums.items()}


def steps(method: Method, batches: Iterable[Batch], *, total: int, lr: float) -> Iterator[Losses]:
    """The losses of plain Adam steps, one batch each (for tests and notebooks)."""
    optimiser = torch.optim.Adam(method.groups(), lr=lr)
    for number, batch in enumerate(islice(batches, total)):
        losses = method.losses(batch, progress=number / total)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        method.after_step(number / total)
        yield losses


@dataclass(slots=True)
class State:
    """Where a run stands; saved with the weights, so that a resumed run goes on exactly.

    Attributes:
        step: Optimiser steps done.
        best: Lowest validation loss; infinity before the first.
        best_step: When it was reached.
        waited: Epochs since.
        stopped: Whether early stopping ended the run.
    """

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    waited: int = 0
    stopped: bool = False


def run(
    method: Method,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Batch],
    config: TrainConfig,
    state: State,
    *,
    passes_per_epoch: int,
    validate: Callable[[], float],
    save: Callable[[str], None],
) -> Iterator[Progress]:
    """Train to the last epoch or until patience ends; keep the weights of the lowest validation.

    Args:
        method: On its device.
        optimiser: Over the method's parameter groups.
        batches: Training batches from pass `state.step * config.accumulate` on.
        config: The run's settings.
        state: Changed in place.
        passes_per_epoch: Batches in an epoch; an incomplete last group of `accumulate` is left.
        validate: The validation loss, in the mode in which the method is to be used.
        save: Called with `best` and `last`; must write atomically.
    """
    per_epoch = max(1, passes_per_epoch // config.accumulate)
    total = per_epoch * config.epochs
    dtype = autocast_dtype(config.precision, next(method.parameters()).device)
    if state.stopped or state.step >= total:
        return
    method.train()
    saved = time.monotonic()
    stream = optimise(
        method,
        optimiser,
        batches,
        total=total,
        accumulate=config.accumulate,
        dtype=dtype,
        start=state.step,
        rate_at=lambda progress: rate(config, progress),
    )
    for parts in stream:
        state.step += 1
        note = Progress(step=state.step, total=total, losses=parts)
        if not math.isfinite(parts["total"]):
            raise InputError(
                f"the loss is {parts['total']} at step {state.step}",
                fix="lower --train.lr, or train in float32 (--train.precision float32)",
            )
        if state.step % per_epoch == 0:
            method.eval()
            value = validate()
            method.train()
            best = value < state.best
            if best:
                state.best, state.best_step, state.waited = value, state.step, 0
                save("best")
            else:
                state.waited += 1
                state.stopped = state.waited >= config.patience
            note = replace(note, validation=value, best=best)
        due = time.monotonic() - saved >= config.checkpoint_seconds
        if due or state.stopped or state.step == total:
            save("last")
            saved = time.monotonic()
        yield note
        if state.stopped:
            return


def parts_text(parts: dict[str, Any]) -> str:
    """Named losses for a progress line."""
    return "  ".join(f"{name} {value:.3f}" for name, value in parts.items())
