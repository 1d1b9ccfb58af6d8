"""The one training loop: optimiser steps over micro-batches, validation, early stopping, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch

from evenfield.config import TrainConfig
from evenfield.errors import InputError
from evenfield.methods.base import Method
from evenfield.train.average import Valley
from evenfield.train.fish import Outer, by_domain
from evenfield.train.optimiser import clipped, rate_share, resets, set_decays, set_rates
from evenfield.train.workers import Workers
from evenfield.types import Batch, Losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the loop yields after each optimiser step.

    Attributes:
        step: Optimiser steps done.
        total: Optimiser steps of a run that is not stopped early.
        losses: Mean of each named part over the micro-batches of the step.
        validation: What selects where this step ended an epoch, lower is better (the validation
            loss, or the share of errors), else None.
        best: Whether that is the lowest so far.
        found: All that this validation measured, the method's named parts among it.
    """

    step: int
    total: int
    losses: dict[str, float]
    validation: float | None = None
    best: bool = False
    found: dict[str, float] | None = None


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


def optimise(
    method: Method,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    total: int,
    accumulate: int = 1,
    dtype: torch.dtype | None = None,
    start: int = 0,
    share_at: Callable[[float], float] | None = None,
    clip: float | None = None,
    meta_lr: float | None = None,
    workers: Workers = Workers(),  # noqa: B008
) -> Iterator[dict[str, float]]:
    """Optimiser steps; each sums the gradients of `accumulate` batches, divided by their number.

    Where the method says so (`reset_at`), the optimiser's state is cleared before a step, once.

    Args:
        method: In the mode in which it is handed over (train).
        optimiser: Over the method's parameter groups.
        batches: At least `accumulate * (total - start)` of them.
        total: Steps of the whole run.
        accumulate: Batches for a step; 8 episodes of 8 plates in CS-ARM-BN.
        dtype: Of autocast; None = off.
        start: Steps done before.
        share_at: Share of the learning rate by progress; None leaves it.
        clip: Largest norm of the gradient.
        meta_lr: Fish: a step is one inner step for each domain of each batch, then this share of
            the way to where they lead; None = plain steps.
        workers: The processes among which the batches of a step are dealt out; `batches` are this
            one's.

    Yields:
        The named parts of the loss, mean over the step's batches, `total` among them.
    """
    stream = iter(batches)
    weights = [p for group in optimiser.param_groups for p in group["params"]]
    outer = None if meta_lr is None else Outer(weights, meta_lr)
    mine = workers.share(accumulate)

    def backward(batch: Batch, progress: float, divisor: int) -> dict[str, torch.Tensor]:
        with torch.autocast(
            batch.image.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
        ):
            losses = method.losses(batch, progress=progress)
        (losses.total / divisor).backward()
        named = [("total", losses.total), *losses.parts.items()]
        return {name: part.detach().float() for name, part in named}

    def move() -> None:
        workers.sum_gradients(weights)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(clipped(optimiser), clip)
        optimiser.step()

    for step in range(start, total):
        progress = step / max(total, 1)
        if resets(method.reset_at, step, total):
            optimiser.state.clear()
        if share_at is not None:
            set_rates(optimiser, share_at(progress))
        set_decays(optimiser, progress)
        passes = islice(stream, mine)
        if outer is None:
            optimiser.zero_grad(set_to_none=True)
            found = [backward(batch, progress, accumulate) for batch in passes]
            move()
        else:
            found = []
            with outer.moving():
                for part in chain.from_iterable(map(by_domain, passes)):
                    optimiser.zero_grad(set_to_none=True)
                    found.append(backward(part, progress, 1))
                    move()
        method.after_step(progress)
        workers.merge_buffers(method)
        yield means(list(chain.from_iterable(workers.gather(numbers(found)))))


def numbers(found: list[dict[str, torch.Tensor]]) -> list[dict[str, float]]:
    """Scalars as numbers, in one transfer: each of its own would wait for the device."""
    device = found[0]["total"].device
    values = iter(torch.stack([v.to(device) for parts in found for v in parts.values()]).tolist())
    return [{name: next(values) for name in parts} for parts in found]


def means(found: list[dict[str, float]]) -> dict[str, float]:
    """Named means over passes; a part that a pass lacks counts as 0 there.

    >>> means([{"total": 3.0, "guard": 1.0}, {"total": 1.0}])
    {'total': 2.0, 'guard': 0.5}
    """
    names = dict.fromkeys(name for parts in found for name in parts)
    return {name: sum(parts.get(name, 0.0) for parts in found) / len(found) for name in names}


def selection(method: Method, select_by: str) -> str:
    """What selects the weights: the loss of a self-supervised method says nothing, so the last."""
    return "last" if method.needs.views and select_by == "loss" else select_by


def selecting(found: dict[str, float], select_by: str) -> float:
    """What selection keeps lowest of a validation: its loss, or its share of errors.

    Where the last weights are kept this is for the history alone.

    >>> selecting({"loss": 1.2, "accuracy": 0.75}, "accuracy")
    0.25
    """
    return found["loss"] if select_by in ("loss", "last") else 1.0 - found[select_by]


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
        best: What selects, at its lowest; infinity before the first validation.
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
    validate: Callable[[], dict[str, float]],
    save: Callable[[str], None],
    valley: Valley | None = None,
    workers: Workers = Workers(),  # noqa: B008
) -> Iterator[Progress]:
    """Train to the last epoch or until patience ends; keep the weights of the best validation.

    Args:
        method: On its device.
        optimiser: Over the method's parameter groups.
        batches: Training batches from pass `state.step * config.accumulate` on.
        config: The run's settings.
        state: Changed in place.
        passes_per_epoch: Batches in an epoch; an incomplete last group of `accumulate` is left.
        validate: What a validation finds, in the mode in which the method is to be used.
        save: Called with `best` and `last`; must write atomically.
        valley: Averages the weights (SWAD); the run ends where its valley does.
        workers: The processes that train together; the first one validates and saves.
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
        share_at=lambda progress: rate_share(config, progress),
        clip=config.clip,
        meta_lr=config.meta_lr,
        workers=workers,
    )
    for parts in stream:
        state.step += 1
        note = Progress(step=state.step, total=total, losses=parts)
        if not math.isfinite(parts["total"]):
            raise InputError(
                f"the loss is {parts['total']} at step {state.step}",
                fix="lower --train.lr, or train in float32 (--train.precision float32)",
            )
        if valley is not None:
            valley.add()
        if state.step % per_epoch == 0:
            method.eval()
            found = workers.from_first(validate)
            method.train()
            select_by = selection(method, config.select_by)
            value = selecting(found, select_by)
            best = value < state.best or select_by == "last"
            if best:
                state.best, state.best_step, state.waited = value, state.step, 0
                save("best")
            else:
                state.waited += 1
                state.stopped = state.waited >= config.patience
            if valley is not None:
                valley.close(found["loss"])
                state.stopped = state.stopped or valley.ended
            note = replace(note, validation=value, best=best, found=found)
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
