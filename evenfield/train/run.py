"""Train one model: a screen and a configuration in, a folder with checkpoints and history out."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from evenfield.config import RunConfig, TrainConfig, config_hash, to_dict
from evenfield.data.dataset import batches
from evenfield.data.manifest import Roles
from evenfield.data.sampler import Sampler
from evenfield.data.store import Screen
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.files import write_json
from evenfield.methods.base import Method
from evenfield.train import checkpoint
from evenfield.train.average import STATISTICS_PASSES, Valley, measure_statistics
from evenfield.train.calibrate import calibrate, control_reference
from evenfield.train.checkpoint import Model
from evenfield.train.fish import check_fish
from evenfield.train.loop import Progress, State, autocast_dtype, device_of, run
from evenfield.train.optimiser import optimiser_for
from evenfield.train.setup import Setup, prepare_run, sampler_for
from evenfield.train.validate import Fixed, labelled_rows, validate, validation_rows
from evenfield.train.workers import Workers, workers


def fit(
    screen: Screen,
    config: RunConfig,
    out: Path,
    *,
    roles: Roles | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Model:
    """Train a model into `out`, or go on where a killed run stopped.

    `out` holds `run.json` (the resolved configuration), `history.jsonl`, `last.pt` and `best.pt`.
    A finished run is returned as it is. On the CPU a resumed run gives the same weights as an
    uninterrupted one. Started by `torchrun`, several processes train together (`train.workers`).

    Raises:
        InputError: `out` holds another run, or the configuration cannot be used.
        StorageError: The disk is full.
    """
    with workers(config.train.device) as joined:
        return _fit(screen, config, out, roles or screen.roles, on_progress, joined)


def _fit(
    screen: Screen,
    config: RunConfig,
    out: Path,
    roles: Roles,
    on_progress: Callable[[Progress], None] | None,
    joined: Workers,
) -> Model:
    train = config.train
    about = {
        "config": to_dict(config),
        "hash": config_hash(config),
        "screen": screen.fingerprint,
        "roles": to_dict(roles),
    }
    _refuse_other(out, about)
    best = out / "best.pt"
    if best.exists() and checkpoint.load(best).get("finished"):
        return checkpoint.open_model(best, device=device_of(train.device))
    setup = prepare_run(screen, config, roles)
    method, sampler = setup.method, sampler_for(setup, train)
    if train.meta_lr is not None:
        check_fish(method, train.meta_lr, joined.num)
    optimiser = optimiser_for(method, train)
    valley = Valley(method) if train.average == "swad" else None
    state = _resume(out / "last.pt", method, optimiser, valley)
    joined.share(train.accumulate)  # named before anything is written
    joined.wait()  # the others may still read what the first is about to write
    if joined.first and not (out / "run.json").exists():  # every setting has been found usable
        write_json(out / "run.json", about)
    fixed_part = checkpoint.describe(
        config, screen, roles, setup.coded.classes, setup.reader.normaliser
    )

    def save(which: str) -> None:
        if not joined.first:
            return
        content = {**fixed_part, "method": method.state_dict(), "state": asdict(state)}
        if which == "last":
            content["optimiser"] = optimiser.state_dict()
            if valley is not None:
                content["valley"] = valley.state()
        checkpoint.save(out / f"{which}.pt", content)

    fixed = Fixed(setup.reader, validation_rows(setup, config))
    bank = Fixed(setup.reader, labelled_rows(setup) if train.select_by == "knn" else [])
    stream = batches(
        setup.reader,
        sampler,
        seed=train.seed,
        start=state.step * train.accumulate + joined.rank,
        every=joined.num,
    )
    with _history(out, state.step) if joined.first else nullcontext() as write:
        for note in run(
            method,
            optimiser,
            stream,
            train,
            state,
            passes_per_epoch=sampler.passes_per_epoch,
            validate=lambda: validate(method, fixed, train.select_by, bank),
            save=save,
            valley=valley,
            workers=joined,
        ):
            if note.validation is not None and write is not None:
                write(note)
            if on_progress is not None and joined.first:
                on_progress(note)
    if joined.first:
        _finish(best, setup, config, sampler, valley)
    joined.wait()
    return checkpoint.open_model(best, device=device_of(train.device))


def _resume(
    last: Path, method: Method, optimiser: torch.optim.Optimizer, valley: Valley | None
) -> State:
    """Put everything back to where a killed run was; the state of a new run if there is none."""
    if not last.exists():
        return State()
    content = checkpoint.load(last)
    checkpoint.restore(method, content["method"], last)
    optimiser.load_state_dict(content["optimiser"])
    if valley is not None:
        valley.restore(content["valley"])
    return State(**content["state"])


def _finish(
    best: Path, setup: Setup, config: RunConfig, sampler: Sampler, valley: Valley | None
) -> None:
    """Take the weights to keep and learn what adapters and the shift score need; mark as finished.

    The weights are the best by validation, or their average in the valley of the loss.
    """
    content, method = checkpoint.load(best), setup.method
    if valley is not None and valley.num:
        valley.put()
        _measure_statistics(setup, config.train, sampler)
        content["method"] = method.state_dict()
        content["averaged"] = valley.num
    else:
        if valley is not None:
            warnings.warn(
                "the validation loss found no valley (three validations in a row without a lower "
                "one): the best single weights are kept, nothing is averaged",
                EvenfieldWarning,
                stacklevel=3,
            )
        checkpoint.restore(method, content["method"], best)
    method.eval()
    content["calibration"] = calibrate(method, setup.reader, setup.split.train, config.train)
    content["reference"] = control_reference(method.predictor, setup.reader, setup.split.train)
    content["finished"] = True
    checkpoint.save(best, content)


def _measure_statistics(setup: Setup, train: TrainConfig, sampler: Sampler) -> None:
    """Running statistics of averaged weights over the first passes of the training."""
    num = min(STATISTICS_PASSES, sampler.passes_per_epoch)
    stream = islice(batches(setup.reader, sampler, seed=train.seed), num)
    dtype = autocast_dtype(train.precision, setup.reader.device)
    with torch.autocast(
        setup.reader.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
    ):
        measure_statistics(setup.method, stream)


def _refuse_other(out: Path, about: dict[str, Any]) -> None:
    """Make sure that the folder is empty or holds this very run.

    Raises:
        InputError: It holds another run, or something else.
    """
    path = out / "run.json"
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        if (there["hash"], there["screen"], there["roles"]) != (
            about["hash"],
            about["screen"],
            about["roles"],
        ):
            raise InputError(
                f"{out} holds another run (its configuration or its screen differs)",
                fix="choose another folder, or delete this one",
            )
        return
    if out.exists() and any(out.iterdir()):
        raise InputError(
            f"the output folder {out} exists and holds something else",
            fix="choose another folder, or empty this one",
        )


class _history:
    """Appends validation points to `history.jsonl`; points beyond a resumed step are dropped."""

    def __init__(self, out: Path, step: int) -> None:
        self._path = out / "history.jsonl"
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
        self._path.write_text("".join(kept), encoding="utf-8")

    def _lines(self) -> Iterator[str]:
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    yield line

    def __enter__(self) -> Callable[[Progress], None]:
        self._file = self._path.open("a", encoding="utf-8")
        return self._write

    def _write(self, note: Progress) -> None:
        values = {item.name: getattr(note, item.name) for item in fields(note)}
        self._file.write(json.dumps(values, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __exit__(self, *_: object) -> None:
        self._file.close()
