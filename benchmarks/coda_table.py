"""CODA's table: frozen, ODA, CODA, `adapt on the source again`, by number of plates adapted on.

    python benchmarks/coda_table.py run OUT [--seeds 0 1 2]
    python benchmarks/coda_table.py jump OUT --screen SCREEN --source source_3 --target source_5
    python benchmarks/coda_table.py keep OUT
    python benchmarks/coda_table.py table benchmarks/records/coda

`run` simulates two laboratories for each seed (the seed of the screen is that of the training) and
takes the four steps of the preset `coda_labs`; `jump` those of `coda_jump_target2`. Both go on
where they were stopped, and print after step 2 whether step 1 has collapsed. On the images of n
plates of the target, without a label:

    frozen          the classifier on the source's encoder, as it is
    statistics      the same with BatchNorm's statistics of each plate (adapter `batch`): seconds
    oda             adapted on these n plates, all crops of an item from one image
    coda            the same with pairs across plates (n = 1 has none, and is `oda`)
    again           adapted with pairs on n plates of the SOURCE: is it the target that helps?
    long            `coda` (`oda` for n = 1) for LONGER times as many steps, the last state kept
    long, watched   the same with anchor and stopping rule: what these are for
    home            `long` on the plates of the SOURCE, where there is no gap to close and only
                    something to lose; judged on the labelled wells that no training has seen
    home, watched   the same with anchor and stopping rule

Every other state is judged on all plates of the target, and on those it was adapted on. `table`
prints means over plates of all seeds, and the share of the gap won back: (adapted - frozen) /
(in-domain - frozen) on the same plates, in-domain being held-out wells (or the held-out plate) of
the source; intervals are bootstrapped over plates (of a gain) or seeds. Below it: what an
adaptation at home costs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keep import of_screens
from tables import span

from evenfield import api
from evenfield.bench.presets.coda import (
    Coda,
    coda_jump_target2,
    coda_labs,
    two_labs_screen,
)
from evenfield.bench.stream import INDEX, follow
from evenfield.data.dataset import Reader
from evenfield.data.simulate import simulate
from evenfield.data.split import make_split
from evenfield.data.store import Screen
from evenfield.metrics.bootstrap import interval, paired_interval
from evenfield.profile.plates import make_adapter, plates, reader_for, shown
from evenfield.records import Record, append, digest, read
from evenfield.train import checkpoint
from evenfield.train.checkpoint import Model
from evenfield.train.online_config import OnlineConfig
from evenfield.train.run import fit

RECORDS = Path(__file__).parent / "records" / "coda"
NUMBERS = (1, 2, 4, 0)
"""How many plates are adapted on; 0 = all."""
HOME = "home"
LONGER = 4
WATCHED = {"anchor": 0.3, "patience": 5, "drift": 3.0}
CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Steps 1 and 2, and what is judged."""

    screen: Screen
    pretrained: Model
    classifier: Model
    reader: Reader
    source: list[str]
    target: list[str]
    in_domain: np.ndarray


def run(out: Path, seeds: list[int], arms: list[str]) -> None:
    for seed in seeds:
        folder = out / "screens" / f"labs-{seed}"
        if not folder.exists():
            simulate(two_labs_screen(seed), folder)
        fill(api.open_screen(folder), coda_labs(), out / f"labs-{seed}", seed, arms)


def fill(screen: Screen, coda: Coda, out: Path, seed: int, arms: list[str]) -> None:
    """Train, adapt and judge what `out` does not hold yet."""
    trained = train(screen, coda, out, seed)
    last = json.loads((out / "pretrained" / "history.jsonl").read_text().splitlines()[-1])
    uniform = np.log(trained.pretrained.method.config.num_outputs)
    inside = in_domain(trained)
    print(f"seed {seed}: loss of step 1 {last['losses']['dino']:.3f} "
          f"(uniform outputs: {uniform:.3f}), "
          f"in-domain accuracy after step 2 {inside.value:.3f}", flush=True)  # fmt: skip
    done = {record.cell for record in read(out)} if (out / "records.jsonl").exists() else set()

    def note(name: str, number: int, found: list[Record]) -> None:
        cell = digest([name, number, seed])
        append(out, [replace(record, method=name, num_images=number, seed=seed, cell=cell,
                             screen=screen.fingerprint) for record in found])  # fmt: skip

    if digest(["frozen", 0, seed]) not in done:
        frozen = judge(trained, {}, trained.target)
        note("frozen", 0, [*frozen, inside])
    if digest([f"{HOME}, frozen", 0, seed]) not in done:
        note(f"{HOME}, frozen", 0, at_home(trained, {}, {}))
    if digest(["statistics", 0, seed]) not in done:
        note("statistics", 0, statistics(trained))
    for number in NUMBERS:
        for name, online, own in plan(coda.online, number):
            if digest([name, number, seed]) in done or (arms and name not in arms):
                continue
            pool = trained.source if own else trained.target
            chosen = tuple(pool[: number or len(pool)])
            states = out / "states" / f"{name.replace(', ', '-')}-{number}"
            settings = replace(online, plates=chosen, seed=seed)
            follow(trained.pretrained, trained.classifier, screen, states, settings)
            entry = json.loads((states / INDEX).read_text(encoding="utf-8"))["arrivals"][-1]
            state = checkpoint.load(states / entry["file"])["state"]
            watch = {key: entry["watch"][key] for key in ("best_step", "stopped")}
            told = {"steps": entry["steps"], **watch}
            if name.startswith(HOME):
                note(name, number, at_home(trained, state, told))
            else:
                note(name, number, judge(trained, state, chosen, told))


def plan(online: OnlineConfig, number: int) -> list[tuple[str, OnlineConfig, bool]]:
    """(name, settings, whether it is the source that is adapted to) for a number of plates."""
    longer = replace(
        online,
        steps=None if online.steps is None else LONGER * online.steps,
        epochs=online.epochs if online.steps else LONGER * online.epochs,
        pairs="none" if number == 1 else online.pairs,
    )
    watched: dict[str, Any] = WATCHED
    found = [("oda", replace(online, pairs="none"), False)]
    if number != 1:
        found += [("coda", online, False), ("again", online, True)]
    if number < 2:
        found += [("long", longer, False), ("long, watched", replace(longer, **watched), False)]
    if number == 0:
        found += [(HOME, longer, True), (f"{HOME}, watched", replace(longer, **watched), True)]
    return found


def train(screen: Screen, coda: Coda, out: Path, seed: int) -> Trained:
    """Steps 1 and 2."""
    roles = api._roles(screen.roles, coda.roles)
    first = replace(coda.pretrain, train=replace(coda.pretrain.train, seed=seed))
    pretrained = fit(screen, first, out / "pretrained", roles=roles)
    second = replace(coda.classify.train, seed=seed, weights=out / "pretrained")
    classifier = fit(screen, replace(coda.classify, train=second), out / "classifier", roles=roles)
    reader = reader_for(classifier, screen)
    coded = reader.coded
    split = make_split(coded, classifier.config.split)
    held_out = np.isin(coded.holdout, split.test_units)
    kept = split.in_domain if len(split.in_domain) else split.validation
    training = np.union1d(split.train, split.validation if len(split.in_domain) else [])
    return Trained(
        screen=screen, pretrained=pretrained, classifier=classifier, reader=reader,
        source=list(coded.by_context(training.astype(np.int64))),
        target=list(coded.by_context(np.flatnonzero(held_out))),
        in_domain=kept,
    )  # fmt: skip


def judge(
    trained: Trained,
    state: Mapping[str, torch.Tensor],
    adapted: list[str] | tuple[str, ...],
    told: dict[str, Any] | None = None,
) -> list[Record]:
    """Accuracy of a state on the labelled images of every plate of the target."""
    fitted = restored(trained, state)
    coded, found = trained.reader.coded, []
    rows = coded.by_context(np.flatnonzero(coded.label >= 0))
    for plate in trained.target:
        right = correct(trained.reader, fitted, rows[plate])
        extra = {"adapted": plate in adapted, **(told or {})}
        found.append(value("new-source", plate, right, extra))
    return found


def statistics(trained: Trained) -> list[Record]:
    """The frozen encoder with BatchNorm's statistics of every plate's own images."""
    rule, coded = make_adapter("batch"), trained.reader.coded
    rows, found = coded.by_context(np.flatnonzero(coded.label >= 0)), []
    for context in plates(trained.screen, trained.classifier, coded):
        if context.name in trained.target:
            images = trained.reader.context(shown(context, rule))
            fitted = rule.fit(trained.classifier.method.predictor, images)
            right = correct(trained.reader, fitted, rows[context.name])
            found.append(value("new-source", context.name, right, {"adapted": True}))
    return found


def in_domain(trained: Trained) -> Record:
    """The frozen classifier on held-out images of the source."""
    right = correct(trained.reader, restored(trained, {}), trained.in_domain)
    return replace(value("in-domain", "all", right, {}), unit_role="all")


def at_home(
    trained: Trained, state: Mapping[str, torch.Tensor], told: dict[str, Any]
) -> list[Record]:
    """Accuracy of a state on the held-out images of every plate of the source."""
    fitted, coded = restored(trained, state), trained.reader.coded
    return [
        value(HOME, plate, correct(trained.reader, fitted, rows), told)
        for plate, rows in coded.by_context(trained.in_domain).items()
    ]


def restored(trained: Trained, state: Mapping[str, torch.Tensor]) -> Any:
    """The classifier with an adapted state; without one as it was trained."""
    rule, source = make_adapter("source"), trained.classifier.method.predictor
    return rule.restore(source, dict(state)) if state else rule.fit(source, empty(trained))


def empty(trained: Trained) -> Any:
    """A context that the adapter `source` does not look at."""
    found = next(plates(trained.screen, trained.classifier, trained.reader.coded))
    return trained.reader.context(shown(found, make_adapter("source")))


def correct(reader: Reader, fitted: Any, rows: np.ndarray) -> np.ndarray:
    """(n,) whether each image is named rightly."""
    guess = [
        fitted.predict(reader.images(rows[start : start + CHUNK])).argmax(1).cpu().numpy()
        for start in range(0, len(rows), CHUNK)
    ]
    return np.concatenate(guess) == reader.coded.label[rows]


def value(protocol: str, unit: str, right: np.ndarray, extra: dict[str, Any]) -> Record:
    return Record(kind="value", metric="accuracy", protocol=protocol, unit=unit,
                  unit_role="context", value=round(float(right.mean()), 6), num=len(right),
                  extra=extra)  # fmt: skip


def kept(record: Record, kind: str, seed: str) -> Record:
    """All values; the unit's name holds the seed, the fold the screen."""
    return replace(record, fold=kind, unit=f"{seed}:{record.unit}")


keep = partial(of_screens, kept=kept)


def table(target: Path) -> None:
    found: dict[tuple[str, int], list[Record]] = defaultdict(list)
    inside: dict[tuple[str, int], float] = {}
    home: dict[str, list[Record]] = defaultdict(list)
    for record in read(target):
        if record.protocol == "in-domain":
            inside[record.fold, record.seed] = record.value or 0.0
        elif record.protocol == HOME:
            home[record.method].append(record)
        else:
            found[record.method, record.num_images or 0].append(record)
    frozen = {(r.fold, r.unit): r.value or 0.0 for r in found["frozen", 0]}
    print(f"In-domain {100 * np.mean([*inside.values()]):.1f}, frozen on all plates of the target "
          f"{100 * np.mean([*frozen.values()]):.1f}\n")  # fmt: skip
    print("| state | plates adapted on | judged on these: accuracy | minus frozen | share won back "
          "| judged on all: accuracy | minus frozen | share won back | steps kept |")  # fmt: skip
    print("| --- " * 9 + "|")
    for (name, number), records in sorted(found.items(), key=lambda item: item[0][1] or 99):
        own = [record for record in records if record.extra["adapted"]]
        cells = [*columns(own, frozen, inside), *columns(records, frozen, inside)]
        print(f"| {name} | {number or 'all'} | {' | '.join(cells)} | {kept_steps(records)} |")
    if home:
        print()
        home_table(home)


def home_table(home: Mapping[str, list[Record]]) -> None:
    """What adapting to plates without a shift costs."""
    print("| at home | accuracy | minus frozen | minus home | steps kept |\n"
          "| --- | --- | --- | --- | --- |")  # fmt: skip
    for name, records in home.items():
        mine = {(r.fold, r.unit): r.value or 0.0 for r in records}
        cells = [f"{100 * np.mean([*mine.values()]):.1f}"]
        for other in (f"{HOME}, frozen", HOME):
            base = {(r.fold, r.unit): r.value or 0.0 for r in home[other]}
            if name == other or base.keys() != mine.keys():
                cells.append("–")
                continue
            ends = [np.array([side[unit] for unit in mine]) for side in (mine, base)]
            gain = paired_interval(*ends, np.array([unit for _, unit in mine]))
            cells.append(f"{100 * gain.mean:+.1f}{bracket(gain.low, gain.high)}")
        print(f"| {name} | {' | '.join(cells)} | {kept_steps(records)} |")


def kept_steps(records: list[Record]) -> str:
    """The steps whose states were kept, each once."""
    adapted = [record for record in records if "steps" in record.extra]
    steps = {
        int(record.extra["best_step" if record.method.endswith("watched") else "steps"])
        for record in adapted
    }
    return ", ".join(map(str, sorted(steps))) or "–"


def columns(
    records: list[Record],
    frozen: Mapping[tuple[str, str], float],
    inside: Mapping[tuple[str, int], float],
) -> list[str]:
    """Mean accuracy, gain over the frozen model and share of the gap won back."""
    if not records:
        return ["–", "–", "–"]
    mine = np.array([record.value or 0.0 for record in records])
    base = np.array([frozen[record.fold, record.unit] for record in records])
    units = np.array([record.unit for record in records])
    gain = paired_interval(mine, base, units)
    best = np.array([inside[record.fold, record.seed] for record in records])
    seeds = np.array([f"{record.fold}:{record.seed}" for record in records])
    shares = np.array([
        (mine[seeds == seed] - base[seeds == seed]).sum()
        / max((best[seeds == seed] - base[seeds == seed]).sum(), 1e-9)
        for seed in np.unique(seeds)
    ])  # fmt: skip
    share = interval(shares, np.unique(seeds))
    return [
        f"{100 * mine.mean():.1f}",
        f"{100 * gain.mean:+.1f}{bracket(gain.low, gain.high)}",
        f"{100 * share.mean:.0f} %{bracket(share.low, share.high)}",
    ]


def bracket(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({span(low, high, '+')})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "jump", "keep", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", default=[])
    parser.add_argument("--screen", type=Path, help="of JUMP's plates, for jump")
    parser.add_argument("--source", default="source_3")
    parser.add_argument("--target", default="source_5")
    parser.add_argument("--weights", type=Path, help="a file of DeiT-S weights, for jump")
    parser.add_argument("--records", type=Path, default=RECORDS)
    given = parser.parse_args()
    if given.what == "run":
        run(given.folder, given.seeds, given.arms)
    elif given.what == "jump":
        preset = coda_jump_target2(given.source, given.target, weights=given.weights)
        where = given.folder / f"{given.source}-to-{given.target}"
        for tick in given.seeds:
            fill(api.open_screen(given.screen), preset, Path(f"{where}-{tick}"), tick, given.arms)
    elif given.what == "keep":
        keep(given.folder, given.records)
    else:
        table(given.folder)
