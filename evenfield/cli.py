"""The command line: the shadow of `evenfield.api`. Exit codes: 0 well, 1 findings, 2 input, 3 disk.

`--help` of every verb answers without importing torch; only `train METHOD --help` and
`ingest READER --help` import the method or reader whose settings they list.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evenfield import __version__, api
from evenfield.config import RoleChoice, SplitConfig, TrainConfig, View, to_dict
from evenfield.errors import EvenfieldError, InputError
from evenfield.progress import set_quiet
from evenfield.train.online_config import OnlineConfig

OUT = Console(soft_wrap=True, highlight=False)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)
ROOT = Path(__file__).parent

VERBS = {
    "demo": "train, adapt, judge and report on a simulated screen: see what it does",
    "doctor": "what this machine offers, and what is broken in its environment",
    "simulate": "write a simulated Cell Painting screen with known batch effects",
    "ingest": "read plates (images and a table) into a screen",
    "audit": "what the design of a screen or table cannot support, before anyone trains",
    "train": "train a model on some batches",
    "adapt": "adapt a model to new plates, without labels",
    "online": "let an encoder follow new plates as they arrive, without labels (CODA)",
    "predict": "predict new plates: labels, probabilities, uncertainty, shift of each plate",
    "embed": "features of every image from a model, adapted plate by plate where asked",
    "correct": "fit a correction of profiles, and apply it to plates that come later",
    "compare": "one HTML page of profiles before and after correction: biology, batches, plates",
    "export": "write profiles for other software: tables, AnnData, folders",
    "evaluate": "judge a model on held-out plates, with and without adaptation",
    "mixes": "draw what a run of contrimix does to images: content maps, mixes, numbers",
    "bench": "run a grid of methods, adapters, protocols and seeds; resumable",
    "report": "make one HTML page of results",
    "results": "print aggregated results as a table or as JSON",
}

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"], help="Print nothing but errors.")]


def _place(name: str) -> Any:
    """A positional path that help calls by its name."""
    return tyro.conf.arg(metavar=name), tyro.conf.Positional


Out = Annotated[Path, *_place("OUT")]
ScreenFolder = Annotated[Path, *_place("SCREEN")]
RunFolder = Annotated[Path, *_place("RUN")]
Results = Annotated[Path, *_place("RESULTS")]
ProfileFile = Annotated[Path, *_place("PROFILES")]
SHORT_FLAGS = (tyro.conf.FlagCreatePairsOff,)


def _files(package: str) -> list[str]:
    """Names of a registry's files, which are its entries' names, without importing them."""
    stems = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "base"}
    return sorted(stem.replace("_", "-") for stem in stems)


def _demo(out: Out = Path("demo"), *, short: bool = False, quiet: Quiet = False) -> int:
    """Train ERM and CS-ARM-BN on simulated batches, adapt to unseen ones, judge, report.

    Args:
        out: Folder; goes on where a killed demo stopped.
        short: Fewer epochs: shows that everything runs, not how well.
        quiet: Print nothing but errors.
    """
    page = api.demo(out, short=short)
    if not quiet:
        _show_rows(api.results(Path(out) / "results"))
        OUT.print(f"\nReport: [bold]{escape(str(page.resolve()))}[/bold]")
    return 0


def _doctor() -> int:
    """What this machine offers, and what is broken in its environment."""
    found = api.doctor()
    for what, value, advice in found:
        OUT.print(
            f"{what:28s} {escape(value)}" + (f"\n  What to do: {escape(advice)}" if advice else "")
        )
    return 1 if any(advice for _, _, advice in found) else 0


def _simulate(
    out: Out,
    *,
    preset: api.SimulationPreset = "demo",
    seed: int = 0,
    strength: float | None = None,
    config: Path | None = None,
    overwrite: bool = False,
    quiet: Quiet = False,
) -> int:
    """Write a simulated Cell Painting screen with known batch effects.

    Args:
        out: Folder of the screen.
        preset: `demo` (small), `grid` (moderate, for regimes), `tiny` (for tests), or one kind of
            batch effects alone (`effect-stain`, `effect-optics`, `effect-cells`; `effect-all`).
        seed: Seed of everything that is drawn.
        strength: Factor of all batch effects; 0 = none at all; none = the preset's own.
        config: A JSON file with a full simulation configuration; it replaces the preset.
        overwrite: Replace a screen that is there.
        quiet: Print nothing but errors.
    """
    api.simulate(
        out, preset=preset, seed=seed, strength=strength, config=config, overwrite=overwrite
    )
    return _say_screen(out, quiet)


def _say_screen(out: Path, quiet: bool) -> int:
    if not quiet:
        screen = api.open_screen(out)
        channels = ", ".join(screen.channels)
        OUT.print(
            f"Screen: [bold]{escape(str(out))}[/bold]: {screen.num_images} images, "
            f"{screen.manifest['Metadata_Plate'].nunique()} plates, "
            f"{screen.manifest['Metadata_Batch'].nunique()} batches, channels {escape(channels)}"
        )
    return 0


def _audit(
    what: Annotated[Path, *_place("SCREEN|PROFILES")],
    *,
    roles: RoleChoice = RoleChoice(),  # noqa: B008
    images: bool = True,
    out: Path | None = None,
    fail_on: Literal["error", "warning", "never"] = "error",
    quiet: Quiet = False,
) -> int:
    """Print what the design of a screen or a table cannot support.

    Exit code 1 where there is an error (or a warning, if asked), 0 otherwise.

    Args:
        what: A screen's folder, or a table of profiles.
        roles: Other columns for the roles.
        images: Read the pixels of a screen, too: copies, empty channels, outliers.
        out: A JSON file for the findings with all their rows.
        fail_on: From which severity on the exit code is 1.
        quiet: Print nothing but errors.
    """
    found = api.audit(what, roles=roles, images=images)
    colour = {"error": "red", "warning": "yellow", "info": "blue"}
    for item in found:
        if quiet and item.severity != "error":
            continue
        rows = f" ({len(item.rows)} rows)" if item.rows else ""
        OUT.print(
            f"[{colour[item.severity]}]{item.severity}[/] {escape(item.check)}: "
            f"{escape(item.message)}{rows}\n  breaks: {escape(item.breaks)}\n  What to do: "
            f"{escape(item.fix)}"
        )
    if not found and not quiet:
        OUT.print("nothing to complain about")
    if out is not None:
        api.write_findings(found, out)
    failing = {"error": {"error"}, "warning": {"error", "warning"}, "never": set()}[fail_on]
    return 1 if any(item.severity in failing for item in found) else 0


def _adapt(
    run: RunFolder,
    screen: ScreenFolder,
    out: Out,
    *,
    adapter: str = "native",
    device: str = "auto",
    quiet: Quiet = False,
) -> int:
    """Adapt a model to every plate of a screen, without labels, and keep the adapted states.

    Args:
        run: A folder that `train` wrote.
        screen: The new plates.
        out: Folder for one state a plate; goes on where a killed call stopped.
        adapter: ADAPTERS; `native` is the one that the method was trained for.
        device: `auto`, `cpu` or `cuda`.
        quiet: Print nothing but errors.
    """
    api.adapt(run, screen, out, adapter=adapter, device=device)
    if not quiet:
        OUT.print(f"Adapted states: [bold]{escape(str(out))}[/bold] (use: predict --adapted)")
    return 0


def _online(
    pretrained: Annotated[Path, *_place("PRETRAINED")],
    classifier: Annotated[Path, *_place("CLASSIFIER")],
    screen: ScreenFolder,
    out: Out,
    *,
    online: OnlineConfig = OnlineConfig(),  # noqa: B008
    after: Path | None = None,
    quiet: Quiet = False,
) -> int:
    """Let an encoder follow new plates by self-supervision; no label is needed, none is read.

    Args:
        pretrained: A run of `dino` on the source.
        classifier: A run of `frozen` with --train.weights PRETRAINED.
        screen: The new plates.
        out: Folder for one state an arrival; goes on where a killed call stopped.
        online: How it follows.
        after: A folder of an earlier call, from whose last state this one starts.
        quiet: Print nothing but errors.
    """
    api.online(pretrained, classifier, screen, out, config=online, after=after)
    if not quiet:
        OUT.print(
            f"Adapted states: [bold]{escape(str(out))}[/bold] (next: evenfield predict "
            f"{escape(str(classifier))} {escape(str(screen))} FILE --adapted {escape(str(out))})"
        )
    return 0


def _predict(
    run: RunFolder,
    screen: ScreenFolder,
    out: Out,
    *,
    adapter: str = "native",
    adapted: Path | None = None,
    level: Literal["image", "well"] = "image",
    layout: Literal["table", "wilds"] = "table",
    device: str = "auto",
    quiet: Quiet = False,
) -> int:
    """Predict every perturbed image (or well) of a screen; labels are not needed and not read.

    Args:
        run: A folder that `train` wrote.
        screen: The new plates.
        out: A Parquet file that does not exist yet; with --layout wilds a folder.
        adapter: ADAPTERS; `native` is the one that the method was trained for.
        adapted: A folder of `adapt`; its states are used instead of adapting now.
        level: One row an image, or one a well.
        layout: A table, or the files of WILDS' leaderboard for every split but train.
        device: `auto`, `cpu` or `cuda`.
        quiet: Print nothing but errors.
    """
    table = api.predict(
        run, screen, out, adapter=adapter, adapted=adapted, level=level, layout=layout,
        device=device,
    )  # fmt: skip
    if not quiet and layout == "wilds":
        for _, line in table.iterrows():
            OUT.print(f"{line['split']}: {line['num']} images, {escape(line['file'])}")
    elif not quiet:
        plates = table.groupby("Metadata_Plate")["Prediction_PlateShift"].first()
        OUT.print(f"Predictions: [bold]{escape(str(out))}[/bold]: {len(table)} rows")
        for plate, shift in plates.items():
            far = "" if not shift > 3 else "  [yellow]far from the training plates[/yellow]"
            OUT.print(f"  plate {escape(str(plate))}: controls' shift {shift:.1f}{far}")
    return 0


def _embed(
    run: RunFolder,
    screen: ScreenFolder,
    out: Out,
    *,
    adapter: str = "source",
    level: Literal["image", "well", "treatment"] = "image",
    aggregate: Literal["mean", "median", "trimmed"] = "mean",
    trim: float = 0.1,
    adapted: Path | None = None,
    features: Literal["head", "encoder"] = "head",
    device: str = "auto",
    quiet: Quiet = False,
) -> int:
    """Write the features of every image of a screen, plate by plate; labels are never used.

    Args:
        run: A folder that `train` wrote.
        screen: The plates.
        out: A Parquet file that does not exist yet; a killed call goes on where it stopped.
        adapter: ADAPTERS; `native` is the one that the method was trained for, `source` is none.
        level: What a row is.
        aggregate: How images become wells, and wells treatments.
        trim: The share that `trimmed` leaves out at either end.
        adapted: A folder of `adapt` or `online`; its states are used instead of adapting now.
        features: What the `head` reads; or, of a classifier on a frozen encoder (`frozen`), what
            the `encoder` gives, which no label has formed.
        device: `auto`, `cpu` or `cuda`.
        quiet: Print nothing but errors.
    """
    api.embed(
        run, screen, out, adapter=adapter, level=level, function=aggregate, trim=trim,
        adapted=adapted, features=features, device=device,
    )  # fmt: skip
    if not quiet:
        OUT.print(f"Profiles: [bold]{escape(str(out))}[/bold] (next: evenfield correct, or export)")
    return 0


def _correct_fit(
    profiles: ProfileFile,
    out: Out,
    *,
    steps: str = "",
    config: Path | None = None,
    quiet: Quiet = False,
) -> int:
    """Fit correctors in a row to profiles, and keep what they learned.

    Args:
        profiles: The table that they learn from.
        out: A .npz file that does not exist yet.
        steps: Correctors joined by commas, in order, with their default settings: CORRECTORS.
        config: A JSON file with the steps and their settings, instead:
            {"steps": [{"corrector": "tvn", "options": {...}}]}.
        quiet: Print nothing but errors.
    """
    names = [name.strip() for name in steps.split(",") if name.strip()]
    fitted = api.fit_correction(profiles, out, steps=names, config=config)
    if not quiet:
        row = " -> ".join(step.name for step in fitted.steps)
        rule = {"same": "nothing", "controls": "its controls", "rows": "all its rows"}
        OUT.print(
            f"Correction: [bold]{escape(str(out))}[/bold]: {escape(row)}; fitted on "
            f"{fitted.steps[0].num_rows} rows; of a plate never seen it reads "
            f"{rule[fitted.unseen]} (next: evenfield correct apply)"
        )
    return 0


def _correct_apply(
    corrector: Annotated[Path, *_place("CORRECTOR")],
    profiles: ProfileFile,
    out: Out,
    *,
    quiet: Quiet = False,
) -> int:
    """Correct profiles, also of plates that were not there when the correction was fitted.

    Args:
        corrector: A file that `correct fit` wrote.
        profiles: The table to correct.
        out: A .parquet or .csv.gz file that does not exist yet.
        quiet: Print nothing but errors.
    """
    found = api.correct(corrector, profiles, out)
    if not quiet:
        OUT.print(
            f"Profiles: [bold]{escape(str(out))}[/bold]: {len(found)} rows, "
            f"{len(found.names)} features"
        )
    return 0


def _correct(arguments: list[str]) -> int:
    """`correct fit` and `correct apply`."""
    calls: dict[str, Callable[..., int]] = {"fit": _correct_fit, "apply": _correct_apply}
    if not arguments or arguments[0] not in calls:
        OUT.print("usage: evenfield correct fit PROFILES OUT --steps NAME,NAME,...")
        OUT.print("       evenfield correct apply CORRECTOR PROFILES OUT\n")
        OUT.print(f"{VERBS['correct']}\n")
        OUT.print(f"NAME is one of: {', '.join(_correctors())}")
        OUT.print("`evenfield correct fit --help` and `evenfield correct apply --help` say more.")
        return 0 if set(arguments[:1]) & {"-h", "--help"} else 2
    action, *rest = arguments
    return _call(calls[action], f"evenfield correct {action}", rest)


def _compare(
    before: Annotated[Path, *_place("BEFORE")],
    after: Annotated[tuple[Path, ...], *_place("AFTER")],
    *,
    out: Path = Path("compare.html"),
    names: tuple[str, ...] = (),
    screen: Path | None = None,
    label: str | None = None,
    treatment: str | None = None,
    compound: str | None = None,
    batch: str | None = None,
    control: str | None = None,
    count: str | None = None,
    show: tuple[str, ...] = (),
    map: Literal["auto", "umap", "pca"] = "auto",
    seed: int = 0,
    quiet: Quiet = False,
) -> int:
    """Make one HTML page of profiles before and after correction.

    Args:
        before: The table of profiles that was corrected.
        after: What one or more corrections made of it; the same wells, found by plate and well.
        out: The page.
        names: A name for each table, BEFORE first; none = the names of the files.
        screen: A screen with the images of the wells, shown under the pointer.
        label: The column of the biology that is judged (mechanism, target).
        treatment: The column of what was put in the well, with its dose.
        compound: The column of what was put in the well, whatever the dose.
        batch: The column of what carries the batch effect.
        control: The column that tells controls.
        count: The column with the number of cells.
        show: More columns or features to draw on plates.
        map: UMAP (needs umap-learn) or principal components; auto = UMAP where it is there.
        seed: Of the maps.
        quiet: Print nothing but errors.
    """
    roles = {"Label": label, "Treatment": treatment, "Compound": compound, "Batch": batch}
    roles["ControlType"] = control
    tables: Any = [before, *after]
    if names:
        if len(names) != len(tables):
            raise InputError(
                f"{len(names)} names are given for {len(tables)} tables",
                fix="give one for each, the table before correction first",
            )
        tables = dict(zip(names, tables, strict=True))
    found = api.compare(
        tables,
        out,
        columns={f"Metadata_{role}": name for role, name in roles.items() if name is not None},
        count=count, screen=screen, map=map, show=show, seed=seed, command=_command(),
    )  # fmt: skip
    if not quiet:
        OUT.print(f"{escape(found.sentence)}\nPage: [bold]{escape(str(out))}[/bold]")
    return 0


def _correctors() -> list[str]:
    return [name for name in _files("correct") if name != "pipeline"]


def _export(
    profiles: ProfileFile,
    out: Out,
    *,
    format: Literal["parquet", "csv.gz", "h5ad", "zarr", "deepprofiler", "gallery"] | None = None,
    layout: Literal["mantispy", "cell-painting-io"] = "mantispy",
    level: Literal["well", "treatment"] | None = None,
    aggregate: Literal["mean", "median", "trimmed"] = "mean",
    trim: float = 0.1,
    mechanism: str | None = None,
    identifier: str | None = None,
    quiet: Quiet = False,
) -> int:
    """Write profiles in a form that other software reads, aggregated before if so wished.

    Args:
        profiles: A table: .parquet, .csv, .csv.gz, .h5ad, .zarr, or a folder of .npz files.
        out: A file or folder that does not exist yet.
        format: Of the output; none = what its name's end says.
        layout: Of AnnData: mantispy keeps the prefix Metadata_, cell-painting-io strips it.
        level: Aggregate to wells or treatments; none = rows stay as they are.
        aggregate: How rows are aggregated.
        trim: The share that `trimmed` leaves out at either end.
        mechanism: The column of mechanisms that becomes Metadata_MOA in AnnData.
        identifier: NETWORK_DATASET_HASH of the gallery's folders; none = what `embed` wrote into
            the table.
        quiet: Print nothing but errors.
    """
    hint = api.export(
        profiles, out, format=format, layout=layout, level=level, function=aggregate, trim=trim,
        mechanism=mechanism, identifier=identifier,
    )  # fmt: skip
    if not quiet:
        OUT.print(f"Profiles: [bold]{escape(str(out))}[/bold]\n{escape(hint)}")
    return 0


def _evaluate(
    run: RunFolder,
    screen: ScreenFolder,
    out: Out,
    *,
    adapters: tuple[str, ...] = ("source", "native"),
    device: str = "auto",
    quiet: Quiet = False,
) -> int:
    """Judge a model on what it was not trained on, with and without adaptation.

    Args:
        run: A folder that `train` wrote.
        screen: A screen with labels; on the training screen only held-out wells and units count.
        out: Folder for the records.
        adapters: ADAPTERS, or `native`.
        device: `auto`, `cpu` or `cuda`.
        quiet: Print nothing but errors.
    """
    rows = api.evaluate(run, screen, out, adapters=adapters, device=device)
    if not quiet:
        _show_rows(rows)
    return 0


def _mixes(
    run: RunFolder,
    screen: ScreenFolder,
    out: Out,
    *,
    seed: int = 0,
    device: str = "auto",
    quiet: Quiet = False,
) -> int:
    """Draw what the encoders of a `contrimix` run do to images of a screen.

    Args:
        run: A folder that `train contrimix` wrote.
        screen: A screen's folder.
        out: An SVG file.
        seed: Draws the images.
        device: `auto`, `cpu` or `cuda`.
        quiet: Print nothing but errors.
    """
    from dataclasses import asdict

    from evenfield.report.mixes import score_lines

    found = api.mixes(run, screen, out, seed=seed, device=device)
    if not quiet:
        for name, text in score_lines(asdict(found)):
            OUT.print(f"{name}: {text}")
        OUT.print(f"Figure: [bold]{escape(str(out))}[/bold]")
    return 0


def _bench(
    preset: Annotated[str, *_place("PRESET")],
    screen: ScreenFolder,
    out: Out,
    *,
    config: Path | None = None,
    seeds: tuple[int, ...] | None = None,
    epochs: int | None = None,
    weights: Path | None = None,
    roles: RoleChoice = RoleChoice(),  # noqa: B008
    quiet: Quiet = False,
) -> int:
    """Run a grid of methods x adapters x regimes x folds x seeds; goes on after a kill.

    Args:
        preset: PRESETS; `custom` takes the file of --config.
        screen: A screen's folder.
        out: Folder of the records, artifacts and runs.
        config: A JSON file with a full grid configuration.
        seeds: Other seeds than the preset's.
        epochs: At most so many epochs in every run.
        weights: A local file of torchvision weights that every backbone starts from.
        roles: Other columns for the roles.
        quiet: Print nothing but errors.
    """
    api.bench(
        preset, screen, out, config=config, seeds=seeds, epochs=epochs, weights=weights,
        roles=roles, command=_command(),
    )  # fmt: skip
    if not quiet:
        _show_rows(api.results(out))
        OUT.print(f"\nRecords: [bold]{escape(str(out))}[/bold] (next: evenfield report {out})")
    return 0


def _report(folder: Results, *, out: Path | None = None, quiet: Quiet = False) -> int:
    """Make one self-contained HTML page of a results folder.

    Args:
        folder: A folder with records.jsonl.
        out: The page; none = report.html in the folder.
        quiet: Print nothing but errors.
    """
    page = api.report(folder, out=out)
    if not quiet:
        OUT.print(f"Report: [bold]{escape(str(page.resolve()))}[/bold]")
    return 0


def _results(
    folder: Results,
    *,
    metric: str = "accuracy",
    level: Literal["image", "well"] = "image",
    format: Literal["table", "json"] = "table",
) -> int:
    """Print aggregated records: means over held-out domains and seeds, with 95 % intervals.

    Args:
        folder: A folder with records.jsonl.
        metric: accuracy, balanced_accuracy, macro_f1, nll, ece, or all.
        level: Of the image or of the well.
        format: A table for people, or JSON rows for programs.
    """
    rows = api.results(folder, metric=metric, level=level)
    if format == "json":
        sys.stdout.write(api.rows_as_json(rows) + "\n")
    else:
        _show_rows(rows)
    return 0


def _show_rows(rows: Any) -> None:
    from evenfield.report.tables import as_text

    OUT.print(as_text(rows))


def _without_entry(arguments: list[str], verb: str, rest: str, says: str, package: str) -> int:
    """Help of a verb whose settings depend on an entry of a registry that was not named."""
    OUT.print(f"usage: evenfield {verb} {rest} \\[settings]\n")
    OUT.print(f"{says}\n")
    OUT.print(f"{verb.split()[1]} is one of: {', '.join(_files(package))}")
    OUT.print(f"`evenfield {verb} --help` lists all settings.")
    return 0 if set(arguments) & {"-h", "--help"} else 2


def _train(arguments: list[str]) -> int:
    """`train METHOD SCREEN OUT`, with the method's own settings as `--options.*`."""
    if not arguments or arguments[0].startswith("-"):
        says = "Train a model on a screen, or go on where a killed run stopped."
        return _without_entry(arguments, "train METHOD", "SCREEN OUT", says, "methods")
    from evenfield.methods import METHODS

    method = arguments[0]
    options = METHODS[method].Config
    shape = make_dataclass(
        "Train",
        [
            ("screen", ScreenFolder),
            ("out", Out),
            *([("options", options, field(default_factory=options))] if fields(options) else []),
            ("view", View, field(default_factory=View)),
            ("split", SplitConfig, field(default_factory=SplitConfig)),
            ("train", TrainConfig, field(default_factory=TrainConfig)),
            ("roles", RoleChoice, field(default_factory=RoleChoice)),
            ("quiet", Quiet, False),
        ],
    )
    shape.__doc__ = (
        f"Train {method} on a screen, or go on where a killed run stopped.\n\n"
        f"{(METHODS[method].__doc__ or '').splitlines()[0]}\n\n"
        "Attributes:\n    screen: A screen's folder.\n    out: Folder of the run.\n"
        "    quiet: Print nothing but errors.\n"
    )
    given: Any = tyro.cli(
        shape, prog=f"evenfield train {method}", args=arguments[1:], config=SHORT_FLAGS
    )
    set_quiet(given.quiet)
    api.train(
        method,
        given.screen,
        given.out,
        options=to_dict(given.options) if fields(options) else {},
        view=given.view,
        split=given.split,
        train=given.train,
        roles=given.roles,
    )
    if not given.quiet:
        OUT.print(
            f"Run: [bold]{escape(str(given.out))}[/bold] (next: evenfield evaluate {given.out} "
            f"{given.screen} results)"
        )
    return 0


def _ingest(arguments: list[str]) -> int:
    """`ingest READER OUT`, with the reader's own settings as `--options.*`."""
    if not arguments or arguments[0].startswith("-"):
        says = "Read plates into a screen: once, in parallel, resumable, all or nothing."
        return _without_entry(arguments, "ingest READER", "OUT", says, "data/sources")
    from evenfield.data.sources import SOURCES

    reader = arguments[0]
    options = SOURCES[reader].Config
    plain = Annotated[options, tyro.conf.arg(name="")]  # type: ignore[valid-type]
    shape = make_dataclass(
        "Ingest",
        [
            ("out", Out),
            ("options", plain, field()),
            ("workers", int | None, None),
            ("overwrite", bool, False),
            ("quiet", Quiet, False),
        ],
    )
    shape.__doc__ = (
        f"Read plates with the reader {reader}.\n\n{(SOURCES[reader].__doc__ or '').strip()}\n\n"
        "Attributes:\n    out: Folder of the screen.\n"
        "    workers: Parallel readers; none = one a core.\n"
        "    overwrite: Replace a screen that is there.\n    quiet: Print nothing but errors.\n"
    )
    given: Any = tyro.cli(
        shape, prog=f"evenfield ingest {reader}", args=arguments[1:], config=SHORT_FLAGS
    )
    set_quiet(given.quiet)
    api.ingest(
        reader,
        given.out,
        options=to_dict(given.options),
        workers=given.workers,
        overwrite=given.overwrite,
    )
    return _say_screen(given.out, given.quiet)


SIMPLE: dict[str, Callable[..., int]] = {
    "demo": _demo,
    "doctor": _doctor,
    "simulate": _simulate,
    "audit": _audit,
    "adapt": _adapt,
    "online": _online,
    "predict": _predict,
    "embed": _embed,
    "compare": _compare,
    "export": _export,
    "evaluate": _evaluate,
    "mixes": _mixes,
    "bench": _bench,
    "report": _report,
    "results": _results,
}


PRESET_NAMES = (
    "demo", "regimes", "fairness", "siblings", "bbbc021-mechanisms", "bbbc021-taxol",
    "robust", "abra-ablation", "abra-search",
    "camelyon17-erm", "camelyon17-baselines", "camelyon17-contrimix",
    "rxrx1-wilds-erm", "rxrx1-wilds-baselines", "rxrx1-wilds-abra",
    "cdcl-rxrx1-huvec", "cdcl-rxrx1-huvec-2", "cdcl-rxrx1-huvec-3", "cdcl-rxrx1-huvec-4",
    "cdcl-rxrx1-huvec-5", "cdcl-rxrx1-huvec-6", "cdcl-cpg0004", "cdcl-labs", "cdcl-weeks",
)  # fmt: skip


def _with_names(text: str) -> str:
    """A help text with the entries of the registries in place of their capital names."""
    text = text.replace("ADAPTERS", "one of " + ", ".join(_files("adapt")))
    text = text.replace("CORRECTORS", ", ".join(_correctors()))
    return text.replace("PRESETS", "one of " + ", ".join(PRESET_NAMES))


def _call(call: Callable[..., int], prog: str, arguments: list[str]) -> int:
    call.__doc__ = _with_names(call.__doc__ or "")
    return tyro.cli(call, prog=prog, args=arguments, config=SHORT_FLAGS)


def _command() -> str:
    return shlex.join(["evenfield", *sys.argv[1:]])


def _usage() -> None:
    OUT.print(
        f"evenfield {__version__}: models of microscopy screens that hold on the next batch\n"
    )
    OUT.print("usage: evenfield VERB ...     (evenfield VERB --help)\n")
    table = Table.grid(padding=(0, 2))
    for verb, text in VERBS.items():
        table.add_row(f"  {verb}", text)
    OUT.print(table)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        _usage()
        return 0 if arguments else 2
    if arguments[0] in {"-V", "--version"}:
        OUT.print(__version__)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        ERR.print(
            f"[red]error[/red] there is no verb {escape(repr(verb))}\n  What to do: use one of: "
            f"{', '.join(VERBS)}"
        )
        return 2
    set_quiet(bool({"-q", "--quiet"} & set(rest)))
    try:
        with api.warnings_as_lines(
            lambda text: ERR.print(f"[yellow]warning[/yellow] {escape(text)}")
        ):
            if verb == "train":
                return _train(rest)
            if verb == "ingest":
                return _ingest(rest)
            if verb == "correct":
                return _correct(rest)
            return _call(SIMPLE[verb], f"evenfield {verb}", rest)
    except EvenfieldError as error:
        ERR.print(f"[red]error[/red] {escape(str(error))}")
        return error.exit_code
    except KeyboardInterrupt:
        ERR.print("stopped; the same command goes on from here")
        return 130


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
