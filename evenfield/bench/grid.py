"""A grid of methods x adapters x regimes x folds x seeds: resumable by hash, records as it goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from evenfield import __version__
from evenfield.bench.artifacts import Artifacts
from evenfield.bench.evaluate import judge, predict_contexts
from evenfield.bench.official import official_scores
from evenfield.bench.rules import fold_config, marked, reads_target, split_by_fold
from evenfield.config import Regime, RunConfig, SplitConfig, TrainConfig, View, to_dict
from evenfield.data.dataset import Reader
from evenfield.data.manifest import Roles
from evenfield.data.split import Split, Units, contexts_for, units
from evenfield.data.store import Screen
from evenfield.errors import InputError
from evenfield.profile.plates import make_adapter
from evenfield.records import Record, append, digest, read
from evenfield.train.checkpoint import Model
from evenfield.train.loop import Progress, device_of
from evenfield.train.run import fit


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChoice:
    """One adapter with its settings.

    Attributes:
        name: A name of `ADAPTERS`.
        options: Its settings; absent ones take its defaults.
        label: How tables call it; empty = its name.
        pictures: Whether the report shows its embedding map (and, for `source`, example fields
            and the drift of the controls); drawn for the first fold and seed.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    pictures: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train, and the adapters that are tried on the model.

    Attributes:
        label: How tables call it, e.g. `cs-arm-bn[controls]`.
        method: A name of `METHODS`.
        options: The method's settings.
        view: What the network sees.
        train: How it is trained (the seed is the grid's).
        adapters: What is done at a new plate.
    """

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    view: View = field(default_factory=View)
    train: TrainConfig = field(default_factory=TrainConfig)
    adapters: tuple[AdapterChoice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GridConfig:
    """What a grid runs.

    Attributes:
        arms: Ways to train.
        protocol: `new-batch` leaves batches out (the `holdout` role), `new-source` sources. The
            held-out wells of the training plates are judged as `in-domain` in the same run.
        folds: Names of the units that are left out together, fold by fold; empty = each in turn.
        split: Other settings of the split. With its `column` there is one fold, the units that the
            column tests.
        rules: `open`, or `wilds`: a choice that reads statistics of the new plates (an adapter, or
            a view normalised by plate or controls) is recorded as another protocol, with the mark
            `(transductive)`, so that no table or verdict compares it with the others.
        seeds: Of training, one run each.
        regimes: How contexts are drawn in the test; the first is the table's.
        in_domain: Whether held-out wells of training plates are judged too.
        also_without: Compounds that are left out of a second scoring of the same predictions, as
            the protocol `... without COMPOUND` (e.g. a positive control that fills a class).
        eval_seed: Seed of the contexts; equal for all arms, adapters and seeds.
        description: One sentence for the report: what is asked of which data.
    """

    arms: tuple[Arm, ...]
    protocol: Literal["new-batch", "new-source"] = "new-batch"
    folds: tuple[tuple[str, ...], ...] = ()
    split: SplitConfig = field(default_factory=SplitConfig)
    rules: Literal["open", "wilds"] = "open"
    seeds: tuple[int, ...] = (0, 1, 2)
    regimes: tuple[Regime, ...] = (Regime(),)
    in_domain: bool = True
    also_without: tuple[str, ...] = ()
    eval_seed: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What the grid says while it works."""

    done: int
    total: int
    text: str
    progress: Progress | None = None


def run_grid(
    screen: Screen,
    config: GridConfig,
    out: Path,
    *,
    roles: Roles | None = None,
    command: str = "",
    on_note: Callable[[Note], None] | None = None,
) -> Path:
    """Run every cell that `out` does not hold yet; a killed grid goes on where it stopped.

    Args:
        screen: The screen.
        config: The grid.
        out: Folder of `records.jsonl`, `artifacts/` and `runs/`.
        roles: Other roles than the screen's.
        command: What the report says to repeat this with.
        on_note: Called as the work goes on.

    Returns:
        The folder.

    Raises:
        InputError: A fold names no unit, or `out` holds results of another screen.
    """
    roles = roles or screen.roles
    if config.protocol == "new-source":
        roles = replace(roles, holdout="Metadata_Source")
    coded = units(screen.manifest, roles, exclude=config.split.exclude, column=config.split.column)
    splits = split_by_fold(coded, config.split, config.folds)
    artifacts = Artifacts(out, screen, command=command, description=config.description)
    known = _finished_cells(out, screen)
    plan = [(fold, seed, arm) for fold in splits for seed in config.seeds for arm in config.arms]
    artifacts.screen_and_findings(coded, roles)
    for number, (fold, seed, arm) in enumerate(plan):
        name = f"{arm.label} / {'+'.join(fold)} / seed {seed}"
        run_config = RunConfig(
            method=arm.method,
            options=arm.options,
            view=arm.view,
            split=fold_config(config.split, fold),
            train=replace(arm.train, seed=seed),
        )
        key = digest(
            {"run": to_dict(run_config), "roles": to_dict(roles), "screen": screen.fingerprint}
        )
        split = splits[fold]
        cells = _cells(config, arm, key, in_domain=config.in_domain and len(split.in_domain) > 0)
        wanted = [cell for cell in cells if cell.key not in known]
        if not wanted:
            continue

        def tell(progress: Progress, name: str = name, number: int = number) -> None:
            if on_note is not None:
                on_note(Note(done=number, total=len(plan), text=name, progress=progress))

        model = fit(screen, run_config, out / "runs" / key, roles=roles, on_progress=tell)
        reader = Reader(
            screen, coded, arm.view, model.normaliser, device_of(run_config.train.device)
        )
        first = fold == next(iter(splits)) and seed == config.seeds[0]
        for cell in wanted:
            if on_note is not None:
                on_note(Note(done=number, total=len(plan), text=f"{name} / {cell.text}"))
            _run_cell(
                cell, arm, model, reader, coded, split, config, fold, seed, key, artifacts, first
            )
    if on_note is not None:
        on_note(Note(done=len(plan), total=len(plan), text="done"))
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    protocol: str
    transductive: bool
    adapter: AdapterChoice
    regime: Regime
    natural: bool
    key: str

    @property
    def text(self) -> str:
        parts = [f"{self.protocol}, adapter {self.adapter.label or self.adapter.name}"]
        for name in ("alpha", "num_images", "num_controls"):
            value = getattr(self.regime, name)
            parts += [] if value is None else [f"{name} {value:g}"]
        return ", ".join(parts)


def _cells(config: GridConfig, arm: Arm, run: str, *, in_domain: bool) -> list[_Cell]:
    found = []
    protocols: list[tuple[str, tuple[Regime, ...]]] = [(config.protocol, config.regimes)]
    if in_domain:
        protocols.append(("in-domain", (Regime(),)))
    for protocol, regimes in protocols:
        for place, regime in enumerate(regimes):
            for adapter in arm.adapters:
                rule = make_adapter(adapter.name, adapter.options)
                transductive = config.rules == "wilds" and reads_target(rule, arm.view)
                about = {
                    "run": run,
                    "protocol": marked(protocol, config.split, transductive=transductive),
                    "adapter": to_dict(adapter),
                    "regime": to_dict(regime),
                    "seed": config.eval_seed,
                }
                found.append(
                    _Cell(
                        protocol=protocol,
                        transductive=transductive,
                        adapter=adapter,
                        regime=regime,
                        natural=place == 0,
                        key=digest(about),
                    )
                )
    return found


def _run_cell(
    cell: _Cell,
    arm: Arm,
    model: Model,
    reader: Reader,
    coded: Units,
    split: Split,
    config: GridConfig,
    fold: tuple[str, ...],
    seed: int,
    run: str,
    artifacts: Artifacts,
    first: bool,
) -> None:
    """Predict without labels, judge, and write all records of the cell at once."""
    rows = split.in_domain if cell.protocol == "in-domain" else split.test
    contexts = contexts_for(coded, rows, cell.regime, seed=config.eval_seed)
    adapter = make_adapter(cell.adapter.name, cell.adapter.options)
    predictions = predict_contexts(model.method.predictor, reader, contexts, adapter)
    screen = reader.screen

    def name(protocol: str) -> str:
        return marked(protocol, config.split, transductive=cell.transductive)

    scored = {name(cell.protocol): judge(predictions, coded)}
    if cell.regime == Regime():
        scored[name(cell.protocol)] += official_scores(predictions, coded, screen)
    for compound in config.also_without:
        kept = (screen.manifest["Metadata_Compound"] != compound).to_numpy()
        scored[name(f"{cell.protocol} without {compound}")] = judge(
            predictions.where(kept[predictions.row]), coded
        )
    base = Record(
        kind="value",
        metric="",
        protocol=name(cell.protocol),
        method=arm.label,
        adapter=cell.adapter.label or cell.adapter.name,
        seed=seed,
        fold="+".join(fold),
        alpha=cell.regime.alpha,
        num_images=cell.regime.num_images,
        num_controls=cell.regime.num_controls,
        screen=screen.fingerprint,
        config=run,
        cell=cell.key,
        versions={"evenfield": __version__, "torch": torch.__version__},
    )
    extra = {
        "cell_size": 0,
        "num_contexts": len(contexts),
        "short_images": sum(item.short for item in contexts),
    }
    files = []
    if cell.natural:
        files.append(artifacts.predictions(base, predictions, coded, screen))
        if first and cell.adapter.pictures and cell.protocol != "in-domain":
            files += artifacts.pictures(base, model, reader, coded, split, contexts, adapter)
    extra["cell_size"] = sum(map(len, scored.values())) + len(files)
    values = [
        replace(
            base,
            protocol=protocol,
            metric=score.metric,
            unit=score.unit,
            unit_role=score.unit_role,
            level=score.level,
            value=score.value,
            num=score.num,
            extra=extra,
        )
        for protocol, scores in scored.items()
        for score in scores
    ]
    append(
        artifacts.out, [*values, *(replace(file, extra={**file.extra, **extra}) for file in files)]
    )


def _finished_cells(out: Path, screen: Screen) -> set[str]:
    """Cells whose records are all there.

    Raises:
        InputError: The folder holds results of another screen.
    """
    if not (out / "records.jsonl").exists():
        if out.exists() and any(path.name not in {"runs", "artifacts"} for path in out.iterdir()):
            raise InputError(
                f"the output folder {out} exists and holds something else",
                fix="choose another folder, or empty this one",
            )
        return set()
    records = [record for record in read(out) if record.cell]
    foreign = sorted({record.screen for record in records} - {screen.fingerprint})
    if foreign:
        raise InputError(
            f"{out} holds results of another screen ({foreign[0]})", fix="choose another folder"
        )
    count = Counter(record.cell for record in records)
    size = {record.cell: record.extra.get("cell_size", 0) for record in records}
    return {cell for cell, num in count.items() if num >= size[cell] > 0}
