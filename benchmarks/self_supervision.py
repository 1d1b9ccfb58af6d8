"""DINO against CDCL (and BYOL, SimCLR): what profiles know of mechanisms, and what of batches.

    python benchmarks/self_supervision.py run OUT [--seeds 0 1 2] [--arms dino cdcl]
    python benchmarks/self_supervision.py tune OUT [--arms dino]
    python benchmarks/self_supervision.py weeks OUT --screen SCREEN [--seeds 0]
    python benchmarks/self_supervision.py keep OUT
    python benchmarks/self_supervision.py table benchmarks/records/self_supervision

`run` simulates a screen of six laboratories for each seed (the seed of the screen is that of the
training), trains the arms of the preset `cdcl-labs` on four of them, and judges profiles of wells
of the other two: as they are, and with every plate's DMSO wells as mean 0 (and one pooled standard
deviation). `weeks` does the same with crops of BBBC021 and weeks that were left out (preset
`cdcl-weeks`; four folds). `tune` is for the teacher's temperature and momentum of the preset: on
the screen of seed 100, which is not among the results, it trains DINO and CDCL for half as long
with several of them and prints what wells of the TRAINING laboratories that select say; no held-out
laboratory is looked at. All go on where they were stopped. `keep` puts what is committed into
benchmarks/records/self_supervision; `table` prints Markdown: means over held-out batches of all
seeds, their bootstrap intervals, and paired differences from DINO.

Measured on held-out batches, never on images that were trained on:

    knn             share of wells that their 5 nearest in OTHER batches name rightly
    knn-rare        the same without taxol, which fills most of BBBC021's wells
    nsc             share of treatments of a batch whose nearest of another compound is of their
                    mechanism
    linear-probe    share of wells that a linear model of the other batches names rightly
    kbet            share of wells in whose neighbourhood the batches are mixed (50 neighbours)
    domain-probe    share of wells whose batch a linear model recognises that has not seen their
                    treatment (of BBBC021: their well; taxol alone)
    effective-rank  how many directions the features use: exp of the entropy of their variances
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from keep import of_screens

from evenfield import api
from evenfield.bench.grid import Arm, GridConfig
from evenfield.bench.presets.cdcl import cdcl_labs, cdcl_weeks, labs_screen
from evenfield.bench.rules import fold_config
from evenfield.config import RunConfig
from evenfield.correct import CORRECTORS
from evenfield.data.names import NEGCON
from evenfield.data.profiles import read_profiles
from evenfield.data.simulate import simulate
from evenfield.data.split import make_split, units
from evenfield.data.store import Screen
from evenfield.metrics.base import PROFILE_METRICS, ProfileMetric, Score
from evenfield.metrics.bootstrap import interval, paired_interval
from evenfield.profile.embed import embed
from evenfield.records import Record, append, digest, read
from evenfield.train.run import fit
from evenfield.types import Profiles

RECORDS = Path(__file__).parent / "records" / "self_supervision"
BATCH, PLATE = "Metadata_Batch", "Metadata_Plate"
WEEKS = (("Week1", "Week6"), ("Week2", "Week8", "Week10"), ("Week3", "Week9"),
         ("Week4", "Week5", "Week7"))  # fmt: skip
WELL = ["Metadata_Plate", "Metadata_Well"]
TUNE_SEED = 100
SETTINGS = ((0.02, 0.98), (0.03, 0.98), (0.03, 0.996), (0.07, 0.996))
"""Temperature of the teacher, and its momentum at the start."""
METRICS = ("knn", "knn-rare", "nsc", "linear-probe", "kbet", "domain-probe", "effective-rank")
Judge = Callable[[Profiles, tuple[str, ...]], dict[str, dict[str, tuple[float, int]]]]
"""Profiles and held-out batches to {metric: {unit: (value, number of items)}}."""


def run(out: Path, seeds: list[int], arms: list[str]) -> None:
    for seed in seeds:
        folder = out / "screens" / f"labs-{seed}"
        if not folder.exists():
            simulate(labs_screen(seed), folder)
        measure(api.open_screen(folder), cdcl_labs(), out / f"labs-{seed}", seed, arms, of_labs)


def weeks(out: Path, screen: Path, seeds: list[int], arms: list[str]) -> None:
    grid = replace(cdcl_weeks(), folds=WEEKS)
    for seed in seeds:
        measure(api.open_screen(screen), grid, out / f"weeks-{seed}", seed, arms, of_weeks)


def tune(out: Path, arms: list[str]) -> None:
    """Print loss, rank and kNN accuracy on the source's validation wells, by temperature."""
    folder = out / "screens" / f"labs-{TUNE_SEED}"
    if not folder.exists():
        simulate(labs_screen(TUNE_SEED), folder)
    screen, grid = api.open_screen(folder), cdcl_labs()
    fold = grid.folds[0]
    coded = units(screen.manifest, screen.roles)
    rows = make_split(coded, fold_config(grid.split, fold)).validation
    wells = set(map(tuple, screen.manifest.loc[rows, WELL].to_numpy()))
    print("| encoder | temperature | momentum | loss (uniform: ln K) | effective rank | knn |")
    print("| --- " * 6 + "|")
    for arm in grid.arms:
        if arm.method not in ("dino", "cdcl") or (arms and arm.label not in arms):
            continue
        short = replace(arm.train, epochs=max(1, arm.train.epochs // 2))
        for tau, momentum in SETTINGS[:1] if arm.label == "untrained" else SETTINGS:
            teacher = {"tau_teacher": tau, "tau_start": tau / 1.5, "momentum_start": momentum}
            tried = replace(arm, train=short, options={**arm.options, **teacher})
            run = out / "tune" / digest([arm.label, str(tau), str(momentum)])
            profiles = profiles_of(screen, grid, tried, fold, TUNE_SEED, run)
            own = [tuple(well) in wells for well in profiles.metadata[WELL].to_numpy()]
            new = part(profiles, own)
            last = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
            uniform = 1.0 if arm.method == "cdcl" else np.log(tried.options["num_outputs"])
            rank = effective_rank(new, "all")["effective-rank"]["all"][0]
            score = nearest_five()(new).value or 0.0
            loss = last["losses"]["dino"]
            print(f"| {arm.label} | {tau:g} | {momentum:g} | {loss:.3f} ({uniform:.3f}) "
                  f"| {rank:.1f} | {100 * score:.1f} |", flush=True)  # fmt: skip


def measure(
    screen: Screen, grid: GridConfig, out: Path, seed: int, arms: list[str], judge: Judge
) -> None:
    """Train and judge what `out` does not hold yet."""
    done = {record.cell for record in read(out)} if (out / "records.jsonl").exists() else set()
    for fold in grid.folds:
        for arm in grid.arms:
            name = digest([arm.label, *fold, str(seed)])
            if digest([name, "standardise"]) in done or (arms and arm.label not in arms):
                continue
            profiles = profiles_of(screen, grid, arm, fold, seed, out / "runs" / name)
            found = []
            for correction, table in corrected(profiles).items():
                base = Record(kind="value", metric="", protocol="new-batch", method=arm.label,
                              adapter=correction, level="well", unit_role="domain", seed=seed,
                              fold="+".join(fold), screen=screen.fingerprint,
                              cell=digest([name, correction]))  # fmt: skip
                found += [
                    replace(base, metric=metric, unit=unit, value=value, num=num)
                    for metric, units in judge(table, fold).items()
                    for unit, (value, num) in units.items()
                ]
            append(out, found)


def profiles_of(
    screen: Screen, grid: GridConfig, arm: Arm, fold: tuple[str, ...], seed: int, run: Path
) -> Profiles:
    """Profiles of all wells from the arm's encoder."""
    config = RunConfig(method=arm.method, options=arm.options, view=arm.view,
                       split=fold_config(grid.split, fold),
                       train=replace(arm.train, seed=seed))  # fmt: skip
    model = fit(screen, config, run)
    file = run / "wells.parquet"
    if not file.exists():
        embed(model, screen, file, level="well")
    return read_profiles(file)


def corrected(profiles: Profiles) -> dict[str, Profiles]:
    """As they are, and on the controls of each plate (of each batch where a plate has none)."""
    rule: Any = CORRECTORS["standardise"]
    told = profiles.metadata
    bare = ~(told["Metadata_ControlType"] == NEGCON).groupby(told[PLATE]).transform("any")
    domain = BATCH if bare.any() else PLATE
    fitted = rule(rule.Config(scale="pooled", domain=domain)).fit(profiles)
    return {"none": profiles, "standardise": fitted.transform(profiles)}


def of_labs(table: Profiles, fold: tuple[str, ...]) -> dict[str, dict[str, tuple[float, int]]]:
    """Wells of the held-out batches alone."""
    new = part(table, table.metadata[BATCH].isin(fold))
    found = {
        "knn": by_batch(nearest_five()(new)),
        "linear-probe": by_batch(PROFILE_METRICS["linear-probe"]()(new)),
        "kbet": by_batch(PROFILE_METRICS["kbet"]()(new)),
        "domain-probe": by_batch(PROFILE_METRICS["domain-probe-treated"]()(new)),
        "nsc": {},
    }
    for name in fold:
        score = PROFILE_METRICS["nsc"]()(part(new, new.metadata[BATCH] == name))
        found["nsc"][name] = (float(score.value or 0.0), score.num)
    return found | effective_rank(new, "+".join(fold))


def of_weeks(table: Profiles, fold: tuple[str, ...]) -> dict[str, dict[str, tuple[float, int]]]:
    """All wells are neighbours (of other weeks); those of the held-out weeks are judged."""
    score = nearest_five()(table)
    rare = score.items[score.items["Metadata_Compound"] != "taxol"]
    taxol = part(table, table.metadata["Metadata_Compound"] == "taxol")
    told = taxol.metadata  # every well a treatment of its own: the probe leaves wells out
    own = told.assign(Metadata_Treatment=told["Metadata_Plate"] + told["Metadata_Well"])
    taxol = replace(taxol, metadata=own)
    found = {
        "knn": by_batch(score),
        "knn-rare": by_batch(replace(score, items=rare)),
        "domain-probe": by_batch(PROFILE_METRICS["domain-probe-treated"]()(taxol)),
    }
    kept = {
        metric: {unit: value for unit, value in units.items() if unit in fold}
        for metric, units in found.items()
    }
    return kept | effective_rank(part(table, table.metadata[BATCH].isin(fold)), "+".join(fold))


def nearest_five() -> ProfileMetric:
    metric: Any = PROFILE_METRICS["knn"]
    return metric(metric.Config(k=5))


def part(table: Profiles, rows: Iterable[bool]) -> Profiles:
    return table[np.flatnonzero(np.asarray(rows))]


def by_batch(score: Score) -> dict[str, tuple[float, int]]:
    """The mean of the items of each batch."""
    groups = score.items.groupby(BATCH)["score"]
    return {str(name): (float(items.mean()), len(items)) for name, items in groups}


def effective_rank(table: Profiles, unit: str) -> dict[str, dict[str, tuple[float, int]]]:
    x = table.features.astype(np.float64)
    variance = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    share = variance[variance > 0] / variance.sum()
    return {"effective-rank": {unit: (float(np.exp(-(share * np.log(share)).sum())), len(x))}}


def kept(record: Record, kind: str, seed: str) -> Record:
    """All values; the fold is the screen, the unit's name holds its seed (all share the weeks)."""
    unit = record.unit if kind == "weeks" else f"{seed}:{record.unit}"
    return replace(record, fold=kind, unit=unit, value=round(record.value or 0.0, 6))


keep = partial(of_screens, kept=kept)


def table(target: Path, yardstick: str) -> None:
    values: dict[tuple[str, str, str, str], dict[tuple[str, int], float]] = defaultdict(dict)
    arms: dict[str, None] = {}
    for record in read(target):
        key = (record.fold, record.adapter, record.metric, record.method)
        values[key][record.unit, record.seed] = record.value or 0.0
        arms[record.method] = None
    for kind, correction in sorted({key[:2] for key in values}):
        metrics = [m for m in METRICS if any(key[:3] == (kind, correction, m) for key in values)]
        print(f"\n**{kind}, correction: {correction}**\n")
        print(f"| encoder | {' | '.join(metrics)} |\n| --- {'| --- ' * len(metrics)}|")
        for arm in arms:
            if not any(values.get((kind, correction, metric, arm)) for metric in metrics):
                continue
            cells = []
            for metric in metrics:
                mine = values.get((kind, correction, metric, arm), {})
                base = values.get((kind, correction, metric, yardstick), {})
                cells.append(cell(mine, base, arm == yardstick, metric))
            print(f"| {arm} | {' | '.join(cells)} |")


def cell(
    mine: dict[tuple[str, int], float],
    base: dict[tuple[str, int], float],
    same: bool,
    metric: str,
) -> str:
    """A mean with its interval, and the paired difference from the yardstick with its own."""
    if not mine:
        return "–"
    keys = sorted(mine)
    units, seeds = np.array([key[0] for key in keys]), np.array([key[1] for key in keys])
    factor = 1 if metric == "effective-rank" else 100
    found = interval(np.array([mine[key] for key in keys]), units, seeds)
    text = f"{factor * found.mean:.1f}{span(found.low, found.high, factor, '')}"
    if same or any(key not in base for key in keys):
        return text
    a, b = (np.array([side[key] for key in keys]) for side in (mine, base))
    gap = paired_interval(a, b, units, seeds)
    return f"{text}; {factor * gap.mean:+.1f}{span(gap.low, gap.high, factor, '+')}"


def span(low: float | None, high: float | None, factor: int, sign: str) -> str:
    if low is None or high is None:
        return ""
    return f" ({factor * low:{sign}.1f} to {factor * high:{sign}.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "tune", "weeks", "keep", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--screen", type=Path, help="a screen of BBBC021's crops, for weeks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", default=[])
    parser.add_argument("--target", type=Path, default=RECORDS)
    parser.add_argument("--yardstick", default="dino")
    given = parser.parse_args()
    if given.what == "run":
        run(given.folder, given.seeds, given.arms)
    elif given.what == "tune":
        tune(given.folder, given.arms)
    elif given.what == "weeks":
        weeks(given.folder, given.screen, given.seeds, given.arms)
    elif given.what == "keep":
        keep(given.folder, given.target)
    else:
        table(given.folder, given.yardstick)
