"""Train one model: a screen and a configuration in, a folder with checkpoints and history out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from evenfield.config import Regime, RunConfig, config_hash, to_dict
from evenfield.data.dataset import Reader, batches
from evenfield.data.manifest import Roles
from evenfield.data.sampler import Episodes, Sampler, Shuffled
from evenfield.data.split import Split, Units, contexts_for, make_split, units
from evenfield.data.store import Screen
from evenfield.data.transforms import Normaliser
from evenfield.errors import InputError
from evenfield.files import write_json
from evenfield.methods.base import Method
from evenfield.train import checkpoint
from evenfield.train.calibrate import calibrate, control_reference
from evenfield.train.checkpoint import Model
from evenfield.train.loop import Progress, State, device_of, optimiser_for, run
from evenfield.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a run works on; the same for training, validation and judging."""

    screen: Screen
    coded: Units
    split: Split
    reader: Reader
    method: Method


def prepare_run(screen: Screen, config: RunConfig, roles: Roles) -> Setup:
    """Split, fit the normaliser on the training rows, and build the method.

    Raises:
        InputError: The split, the roles or a setting cannot be used.
    """
    device = device_of(config.train.device)
    coded = units(screen.manifest, roles, exclude=config.split.exclude, column=config.split.column)
    split = make_split(coded, config.split)
    normaliser = Normaliser.fit(screen, split.train, config.view)
    reader = Reader(screen, coded, config.view, normaliser, device)
    method = checkpoint.build_method(
        config, num_channels=len(screen.channels), num_classes=len(coded.classes)
    )
    side = config.view.crop or min(screen.shape[1:])
    if side < method.needs.smallest_side:
        raise InputError(
            f"{config.method} needs images of {method.needs.smallest_side} pixels or more; these "
            f"have {side}",
            fix="use a larger crop or larger images",
        )
    if method.needs.unit and config.view.normalise != "unit":
        raise InputError(
            f"{config.method} works on pixels in 0 to 1, and the view normalises by "
            f"{config.view.normalise!r}",
            fix="give --view.normalise unit",
        )
    return Setup(screen=screen, coded=coded, split=split, reader=reader, method=method.to(device))


def sampler_for(setup: Setup, config: RunConfig) -> Sampler:
    """Episodes of one plate where the method asks for them, else all plates shuffled."""
    train = config.train
    rows = setup.split.train
    label = setup.coded.label if train.balance == "class" else None
    if not setup.method.needs.one_context:
        return Shuffled(rows, size=train.num_perturbed, seed=train.seed, label=label)
    perturbed = setup.coded.by_context(rows)
    return Episodes(
        perturbed,
        {name: setup.coded.controls_of(name) for name in perturbed},
        num_perturbed=train.num_perturbed,
        num_controls=train.num_controls if setup.method.needs.controls else 0,
        seed=train.seed,
        ratio=train.ratio,
        label=label,
    )


def validation_batches(setup: Setup, config: RunConfig) -> list[np.ndarray]:
    """Rows of the validation batches, fixed over the run: episodes like those of the training."""
    rows, train = setup.split.validation, config.train
    if not setup.method.needs.one_context:
        return [rows[start : start + 256] for start in range(0, len(rows), 256)]
    sizes = {len(part) for part in setup.coded.by_context(rows).values()}
    regime = Regime(
        num_images=min([train.num_perturbed, *sizes]),
        num_controls=train.num_controls if setup.method.needs.controls else 0,
    )
    contexts = contexts_for(setup.coded, rows, regime, seed=config.split.seed)
    return [np.concatenate([item.perturbed, item.controls]) for item in contexts]


def validation_loss(method: Method, fixed: list[Batch]) -> float:
    """Mean loss over the labelled validation images, in the mode that the method trains for."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in fixed:
            num = int((batch.label >= 0).sum())
            total += float(method.losses(batch, progress=1.0).total) * num
            count += num
    return total / max(count, 1)


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
    uninterrupted one.

    Raises:
        InputError: `out` holds another run, or the configuration cannot be used.
        StorageError: The disk is full.
    """
    roles = roles or screen.roles
    _claim(out, screen, config, roles)
    best, last = out / "best.pt", out / "last.pt"
    if best.exists() and checkpoint.load(best).get("finished"):
        return checkpoint.open_model(best, device=device_of(config.train.device))
    setup = prepare_run(screen, config, roles)
    method, state = setup.method, State()
    optimiser = optimiser_for(method, config.train)
    if last.exists():
        content = checkpoint.load(last)
        checkpoint.restore(method, content["method"], last)
        optimiser.load_state_dict(content["optimiser"])
        state = State(**content["state"])
    fixed_part = checkpoint.describe(
        config, screen, roles, setup.coded.classes, setup.reader.normaliser
    )

    def save(which: str) -> None:
        content = {**fixed_part, "method": method.state_dict(), "state": asdict(state)}
        if which == "last":
            content["optimiser"] = optimiser.state_dict()
        checkpoint.save(out / f"{which}.pt", content)

    sampler = sampler_for(setup, config)
    fixed = [setup.reader.batch(rows) for rows in validation_batches(setup, config)]
    stream = batches(
        setup.reader,
        sampler,
        seed=config.train.seed,
        start=state.step * config.train.accumulate,
    )
    with _history(out, state.step) as write:
        for note in run(
            method,
            optimiser,
            stream,
            config.train,
            state,
            passes_per_epoch=sampler.passes_per_epoch,
            validate=lambda: validation_loss(method, fixed),
            save=save,
        ):
            if note.validation is not None:
                write(note)
            if on_progress is not None:
                on_progress(note)
    return _finish(out, setup, config)


def _finish(out: Path, setup: Setup, config: RunConfig) -> Model:
    """Take the best weights and learn what adapters and the shift score need; mark as finished."""
    path = out / "best.pt"
    content = checkpoint.load(path)
    checkpoint.restore(setup.method, content["method"], path)
    method = setup.method.eval()
    content["calibration"] = calibrate(method, setup.reader, setup.split.train, config.train)
    content["reference"] = control_reference(method.predictor, setup.reader, setup.split.train)
    content["finished"] = True
    checkpoint.save(path, content)
    return checkpoint.open_model(path, device=device_of(config.train.device))


def _claim(out: Path, screen: Screen, config: RunConfig, roles: Roles) -> None:
    """Write `run.json`, or make sure that the folder holds this very run."""
    about = {
        "config": to_dict(config),
        "hash": config_hash(config),
        "screen": screen.fingerprint,
        "roles": to_dict(roles),
    }
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
    write_json(path, about)


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
