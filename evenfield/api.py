"""The doors: one call a verb. The command line is the shadow of this file.

Nothing heavy is imported before a verb is called, so that imports and `--help` are quick.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evenfield.config import (
    RoleChoice,
    RunConfig,
    SplitConfig,
    TrainConfig,
    View,
    load_config,
)
from evenfield.errors import EvenfieldWarning, InputError

if TYPE_CHECKING:
    import pandas as pd

    from evenfield.bench.mixes import Mixes
    from evenfield.correct import Corrector, Pipeline
    from evenfield.data.manifest import Finding, Roles
    from evenfield.data.store import Screen
    from evenfield.report.profile_verdict import ProfileVerdict
    from evenfield.report.tables import Row
    from evenfield.train.checkpoint import Model
    from evenfield.train.online_config import OnlineConfig
    from evenfield.types import Profiles

SimulationPreset = Literal[
    "demo", "grid", "tiny", "effect-stain", "effect-optics", "effect-cells", "effect-all"
]


def open_screen(folder: Path | str) -> Screen:
    """Open a screen.

    Args:
        folder: What `ingest` or `simulate` wrote.

    Raises:
        InputError: It is no screen, or one of a newer schema.
    """
    from evenfield.data.store import Screen

    return Screen.open(Path(folder))


def _roles(own: Roles, choice: RoleChoice) -> Roles:
    given = {
        name: value
        for name in ("label", "context", "domain", "holdout")
        if (value := getattr(choice, name)) is not None
    }
    return replace(own, **given)


def simulate(
    out: Path,
    *,
    preset: SimulationPreset = "demo",
    seed: int = 0,
    strength: float | None = None,
    config: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a simulated Cell Painting screen with known batch effects.

    Args:
        out: Folder of the screen.
        preset: `demo` (what `evenfield demo` uses), `grid` (larger, for regimes), `tiny`, or one
            kind of batch effects alone: `effect-stain`, `effect-optics`, `effect-cells`; with all
            of them on the same layout: `effect-all`.
        seed: Seed of everything that is drawn.
        strength: Factor of all batch effects; 0 = no batch effect; none = the preset's.
        config: A JSON file with a full simulation configuration; it replaces the preset.
        overwrite: Replace a screen that is there.
    """
    from evenfield.data import simulate as simulation

    if config is not None:
        settings = load_config(simulation.SimulationConfig, config)
    else:
        presets: dict[str, Callable[[int], simulation.SimulationConfig]] = {
            "demo": simulation.demo_screen,
            "grid": simulation.grid_screen,
            "tiny": simulation.tiny_screen,
            **{
                f"effect-{kind}": partial(simulation.effect_screen, kind)
                for kind in simulation.EFFECT_TYPES
            },
        }
        settings = presets[preset](seed)
    if strength is not None:
        settings = replace(settings, strength=strength)
    simulation.simulate(settings, Path(out), overwrite=overwrite)
    return Path(out)


def ingest(
    reader: str,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Read plates into a screen: once, in parallel, resumable, all or nothing.

    Args:
        reader: A name of `SOURCES`, e.g. `table`.
        out: Folder of the screen.
        options: The reader's settings.
        workers: Parallel readers; none = one a core.
        overwrite: Replace a screen that is there.

    Raises:
        InputError: The table or an image cannot be used; all faults are named together.
    """
    from evenfield.config import from_dict
    from evenfield.data.ingest import ingest as run
    from evenfield.data.sources import SOURCES

    settings: Any = from_dict(SOURCES[reader].Config, dict(options or {}), where=f"{reader}.")
    run(reader, settings, Path(out), workers=workers, overwrite=overwrite)
    return Path(out)


def audit(
    what: Path | str,
    *,
    roles: RoleChoice = RoleChoice(),  # noqa: B008
    images: bool = True,
) -> list[Finding]:
    """What a screen's or a table's design cannot support, before anyone trains.

    Args:
        what: A screen's folder, or a table of profiles (see `read_profiles`).
        roles: Other columns for the roles.
        images: Whether the pixels of a screen are read, too: each once, for copies of images,
            empty and saturated channels, and outliers of focus and intensity.

    Returns:
        Findings, the worst first; `rows` are rows of the manifest or of the table.

    Raises:
        InputError: It is neither a screen nor a table.
    """
    from evenfield.data.audit import audit_profiles, audit_screen
    from evenfield.data.manifest import Roles
    from evenfield.data.profiles import read_profiles
    from evenfield.data.screen import INFO

    path = Path(what)
    if (path / INFO).exists():
        opened = open_screen(path)
        return audit_screen(opened, _roles(opened.roles, roles), images=images)
    profiles = read_profiles(path, missing="keep", repeated="keep")
    return audit_profiles(profiles, _roles(Roles(), roles))


def write_findings(found: Sequence[Finding], out: Path | str) -> None:
    """Write what an audit found, with all rows, as JSON.

    Raises:
        StorageError: The disk is full or read-only.
    """
    from dataclasses import asdict

    from evenfield.files import write_json

    write_json(Path(out), [asdict(item) for item in found])


def train(
    method: str,
    screen: Path | str,
    out: Path | str,
    *,
    options: Mapping[str, Any] | None = None,
    view: View = View(),  # noqa: B008
    split: SplitConfig = SplitConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    roles: RoleChoice = RoleChoice(),  # noqa: B008
) -> Path:
    """Train a model on a screen, or go on where a killed run stopped.

    Args:
        method: A name of `METHODS`, e.g. `cs-arm-bn`.
        screen: A screen's folder.
        out: Folder of the run: `run.json`, `history.jsonl`, `best.pt`, `last.pt`.
        options: The method's own settings.
        view: What the network sees.
        split: What is held out.
        train: How it is trained.
        roles: Other columns for the roles.

    Returns:
        The folder of the run.

    Raises:
        InputError: `out` holds another run, or a setting cannot be used.
    """
    from evenfield.progress import Bar
    from evenfield.train.loop import parts_text
    from evenfield.train.run import fit

    opened = open_screen(screen)
    config = RunConfig(
        method=method, options=dict(options or {}), view=view, split=split, train=train
    )
    with Bar(f"train {method}") as bar:
        validation = ""

        def show(note: Any) -> None:
            nonlocal validation
            if note.validation is not None:
                validation = f"  validation {note.validation:.3f}{' (best)' if note.best else ''}"
            bar.update(note.step, note.total, parts_text(note.losses) + validation)

        fit(opened, config, Path(out), roles=_roles(opened.roles, roles), on_progress=show)
    return Path(out)


def _model(run: Path | str, device: str = "auto") -> Model:
    from evenfield.train.checkpoint import open_model
    from evenfield.train.loop import device_of

    return open_model(Path(run), device=device_of(device))


def adapt(
    run: Path | str,
    screen: Path | str,
    out: Path | str,
    *,
    adapter: str = "native",
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Path:
    """Adapt a model to every plate of a screen, without labels, and keep the adapted states.

    Args:
        run: A run's folder.
        screen: The new plates.
        out: Folder for one state a plate.
        adapter: A name of `ADAPTERS`; `native` = the one that the method was trained for.
        options: The adapter's settings.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The folder; `predict` takes it as `adapted`.
    """
    from evenfield.bench.deploy import adapt_plates

    return adapt_plates(
        _model(run, device), open_screen(screen), Path(out), adapter, dict(options or {})
    )


def online(
    pretrained: Path | str,
    classifier: Path | str,
    screen: Path | str,
    out: Path | str,
    *,
    config: OnlineConfig | None = None,
    after: Path | str | None = None,
) -> Path:
    """Let an encoder follow new plates by self-supervision (CODA, ODA), or go on after a kill.

    Args:
        pretrained: A run of `dino` on the source.
        classifier: A run of `frozen` on its encoder (`--train.weights PRETRAINED`).
        screen: The new plates; labels are not needed and not read.
        out: Folder for one state an arrival.
        config: The settings; none = the released ones.
        after: A folder of an earlier call, whose last state is where this one starts.

    Returns:
        The folder; `predict` takes it as `adapted`, with `classifier` as the run.

    Raises:
        InputError: The runs do not belong together, or the screen does not fit.
    """
    from evenfield.bench.stream import follow
    from evenfield.progress import Bar
    from evenfield.train.loop import parts_text
    from evenfield.train.online_config import OnlineConfig

    settings = config or OnlineConfig()
    with Bar("online") as bar:

        def show(name: str, step: int, total: int, parts: dict[str, float]) -> None:
            bar.update(step, total, f"{name}  {parts_text(parts)}")

        follow(
            _model(pretrained, settings.device),
            _model(classifier, settings.device),
            open_screen(screen),
            Path(out),
            settings,
            after=None if after is None else Path(after),
            on_progress=show,
        )
    return Path(out)


def predict(
    run: Path | str,
    screen: Path | str,
    out: Path | str,
    *,
    adapter: str = "native",
    options: Mapping[str, Any] | None = None,
    adapted: Path | None = None,
    level: Literal["image", "well"] = "image",
    layout: Literal["table", "wilds"] = "table",
    device: str = "auto",
) -> pd.DataFrame:
    """Predict every perturbed image (or well) of a screen, plate by plate.

    Args:
        run: A run's folder.
        screen: The new plates; labels are not needed and not read.
        out: A Parquet file: `Metadata_` columns, label, probabilities, uncertainty (entropy of the
            probabilities, 0 to 1), and the plate's shift score (how far its controls lie from
            those of the training plates; about 1 is usual).
        adapter: A name of `ADAPTERS`; `native` = the one that the method was trained for.
        options: The adapter's settings.
        adapted: A folder of `adapt`; its states are used instead of adapting now.
        level: One row an image, or one a well (mean probability).
        layout: `table`; or `wilds`: `out` is a folder for the files of WILDS' leaderboard, one
            class number a line for every split but `train` (screens of a WILDS reader only).
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The table that was written; for `wilds` the names and sizes of the files.

    Raises:
        InputError: The output exists, or the screen does not fit.
    """
    from evenfield.bench.deploy import predict_leaderboard, predict_plates

    if layout == "wilds":
        if adapted is not None or level != "image":
            raise InputError(
                "the leaderboard takes images without adapted states",
                fix="leave --adapted and --level away",
            )
        return predict_leaderboard(
            _model(run, device), open_screen(screen), Path(out), adapter, dict(options or {})
        )
    return predict_plates(
        _model(run, device),
        open_screen(screen),
        Path(out),
        adapter,
        dict(options or {}),
        adapted=Path(adapted) if adapted else None,
        level=level,
    )


def embed(
    run: Path | str,
    screen: Path | str,
    out: Path | str,
    *,
    adapter: str = "source",
    options: Mapping[str, Any] | None = None,
    level: Literal["image", "well", "treatment"] = "image",
    function: Literal["mean", "median", "trimmed"] = "mean",
    trim: float = 0.1,
    adapted: Path | str | None = None,
    features: Literal["head", "encoder"] = "head",
    device: str = "auto",
) -> Path:
    """Features of every image of a screen from a trained model, plate by plate; resumable.

    Args:
        run: A run's folder.
        screen: The images; labels are carried along, never used.
        out: A Parquet file: `Metadata_` columns, then features `<method>_<i>`, float32.
        adapter: A name of `ADAPTERS`; `source` = the model as it was trained; `native` = the one
            that its method was trained for. It is fitted to each plate's own images.
        options: The adapter's settings.
        level: What a row is: an image, a well, a treatment.
        function: How images become wells, and wells treatments.
        trim: The share that `trimmed` leaves out at either end.
        adapted: A folder of `adapt` or `online`; its states are used instead of adapting now.
        features: What the `head` reads; or, of a classifier on a frozen encoder (`frozen`), what
            the `encoder` gives.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The file; `read_profiles` reads it.

    Raises:
        InputError: `out` exists, or the screen does not fit the model.
    """
    from evenfield.profile.embed import embed as write

    write(
        _model(run, device),
        open_screen(screen),
        Path(out),
        adapter=adapter,
        options=options,
        level=level,
        function=function,
        trim=trim,
        adapted=None if adapted is None else Path(adapted),
        features=features,
    )
    return Path(out)


def fit_correction(
    profiles: Path | str | Sequence[Path | str] | Profiles,
    out: Path | str,
    *,
    steps: Sequence[str] = (),
    config: Path | None = None,
) -> Pipeline:
    """Fit correctors in a row to profiles, and keep what they learned.

    Args:
        profiles: What they learn from: tables that are joined, or profiles.
        out: A `.npz` file that does not exist yet.
        steps: Names of `CORRECTORS`, in order, with their default settings.
        config: A JSON file with a `PipelineConfig`: steps with their own settings.

    Returns:
        The fitted pipeline; `correct` takes it, or its file.

    Raises:
        InputError: Neither or both of `steps` and `config` are given, `out` exists, or a step
            refuses the profiles.
    """
    from evenfield.correct import Pipeline, PipelineConfig, Step

    if (config is None) == (not steps):
        raise InputError(
            "a correction needs its steps, by name or in a file",
            fix="give either --steps or --config",
        )
    _refuse_existing(Path(out))
    if config is not None:
        settings = load_config(PipelineConfig, config)
    else:
        settings = PipelineConfig(steps=tuple(Step(corrector=name) for name in steps))
    unfitted = Pipeline.from_config(settings)
    fitted = unfitted.fit(_profiles(profiles, nan=unfitted.steps[0].accepts_nan))
    fitted.save(Path(out))
    return fitted


def correct(
    correction: Path | str | Pipeline | Corrector,
    profiles: Path | str | Sequence[Path | str] | Profiles,
    out: Path | str | None = None,
) -> Profiles:
    """Correct profiles, also of plates that were not there when the correction was fitted.

    Args:
        correction: What `fit_correction` made, or its file.
        profiles: What is corrected: tables that are joined, or profiles.
        out: A `.parquet` or `.csv.gz` file that does not exist yet; none = nothing is written.

    Raises:
        InputError: The profiles lack features; a step refuses a plate that it has never seen;
            `out` exists.
    """
    from evenfield.correct import Pipeline, load
    from evenfield.data.profiles import write_profiles

    if out is not None:
        _refuse_existing(Path(out))
    fitted = load(Path(correction)) if isinstance(correction, str | Path) else correction
    first = fitted.steps[0] if isinstance(fitted, Pipeline) else fitted
    corrected = fitted.transform(_profiles(profiles, nan=first.accepts_nan))
    if out is not None:
        write_profiles(corrected, Path(out))
    return corrected


def _profiles(
    given: Path | str | Sequence[Path | str] | Profiles, *, nan: bool = False
) -> Profiles:
    """Profiles from files; NaN pass the door where the first step drops such features."""
    from evenfield.data.profiles import read_profiles
    from evenfield.types import Profiles

    if isinstance(given, Profiles):
        return given
    return read_profiles(given, missing="keep" if nan else "error")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise InputError(f"the output {out} exists", fix="choose another file or delete this one")


def export(
    profiles: Path | str | Sequence[Path | str] | Profiles,
    out: Path | str,
    *,
    format: Literal["parquet", "csv.gz", "h5ad", "zarr", "deepprofiler", "gallery"] | None = None,
    layout: Literal["mantispy", "cell-painting-io"] = "mantispy",
    level: Literal["well", "treatment"] | None = None,
    function: Literal["mean", "median", "trimmed"] = "mean",
    trim: float = 0.1,
    mechanism: str | None = None,
    identifier: str | None = None,
) -> str:
    """Write profiles in a form that other software reads, aggregated before if so wished.

    Args:
        profiles: Tables that are joined, or profiles.
        out: A file, or a folder for `zarr`, `deepprofiler` and `gallery`.
        format: None = what the name's end says.
        layout: Of AnnData: `mantispy` keeps the prefix `Metadata_`, `cell-painting-io` strips it.
        level: Aggregate to wells or treatments; none = rows stay as they are.
        function: How rows are aggregated.
        trim: The share that `trimmed` leaves out at either end.
        mechanism: The column of mechanisms that becomes `Metadata_MOA` in AnnData.
        identifier: NETWORK_DATASET_HASH of the gallery's folders; none = what `embed` has written
            into the table.

    Returns:
        What other software must be told, in a line or two.

    Raises:
        InputError: `out` exists, or the format needs what the profiles lack.
    """
    from evenfield.profile.aggregate import aggregate
    from evenfield.profile.export import export_profiles

    if identifier is None and isinstance(profiles, str | Path):
        from evenfield.profile.made_by import identifier_of

        identifier = identifier_of(Path(profiles))
    found = _profiles(profiles)
    if level is not None:
        found = aggregate(found, level, function=function, trim=trim)
    return export_profiles(
        found, Path(out), format=format, layout=layout, mechanism=mechanism, identifier=identifier
    )


def evaluate(
    run: Path | str,
    screen: Path | str,
    out: Path | str,
    *,
    adapters: Sequence[str] = ("source", "native"),
    device: str = "auto",
) -> list[Row]:
    """Judge a model against the labels of held-out plates, with and without adaptation.

    On the screen that it was trained on, its held-out wells (`in-domain`) and its held-out units
    (`new-batch`) are judged, never a training image; on another screen, all labelled images
    (`new-screen`).

    Args:
        run: A run's folder.
        screen: A screen with labels.
        out: Folder for the records.
        adapters: Names of `ADAPTERS`, or `native`.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The table.
    """
    from evenfield.bench.deploy import evaluate_run

    evaluate_run(_model(run, device), open_screen(screen), Path(out), tuple(adapters))
    return results(out)


def mixes(
    run: Path | str,
    screen: Path | str,
    out: Path | str,
    *,
    seed: int = 0,
    device: str = "auto",
) -> Mixes:
    """Draw what the encoders of a `contrimix` run do to images of a screen.

    Args:
        run: A run's folder.
        screen: A screen's folder; of the training screen only images that it has not seen.
        out: An SVG file: content maps, and contents under the attributes of other domains.
        seed: Draws the images.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        What was drawn, with numbers: how much structure mixes keep.

    Raises:
        InputError: `out` is no SVG file, or the run is not one of `contrimix`.
    """
    from dataclasses import asdict

    from evenfield.bench.mixes import mixes_of_run
    from evenfield.files import whole
    from evenfield.report.mixes import mix_file

    path = Path(out)
    if path.suffix != ".svg":
        raise InputError(f"{path} is no name of an SVG file", fix="give one that ends in .svg")
    found = mixes_of_run(_model(run, device), open_screen(screen), seed=seed)
    with whole(path) as file:
        file.write(mix_file(asdict(found)).encode())
    return found


def bench(
    preset: str,
    screen: Path | str,
    out: Path | str,
    *,
    config: Path | None = None,
    seeds: tuple[int, ...] | None = None,
    epochs: int | None = None,
    weights: Path | None = None,
    roles: RoleChoice = RoleChoice(),  # noqa: B008
    command: str = "",
) -> Path:
    """Run a grid of methods x adapters x regimes x folds x seeds; goes on after a kill.

    Args:
        preset: A name of `evenfield.bench.presets.PRESETS`; `custom` = the file `config`.
        screen: A screen's folder.
        out: Folder of the records, artifacts and runs.
        config: A JSON file with a full grid configuration.
        seeds: Other seeds than the preset's.
        epochs: At most so many epochs in every run.
        weights: A local file of torchvision weights that every backbone starts from.
        roles: Other columns for the roles.
        command: What the report says to repeat this with.

    Returns:
        The folder; `report` makes a page of it.
    """
    from evenfield.bench.grid import GridConfig, run_grid
    from evenfield.bench.presets import PRESETS
    from evenfield.progress import Bar

    if config is not None:
        grid = load_config(GridConfig, config)
    elif preset in PRESETS:
        grid = PRESETS[preset]()
    else:
        raise InputError(
            f"there is no grid called {preset!r}",
            fix=f"choose one of: {', '.join(PRESETS)}; or give a file with --config",
        )
    if seeds is not None:
        grid = replace(grid, seeds=tuple(seeds))
    if epochs is not None:
        grid = replace(
            grid,
            arms=tuple(
                replace(arm, train=replace(arm.train, epochs=min(epochs, arm.train.epochs)))
                for arm in grid.arms
            ),
        )
    if weights is not None:
        arms = [replace(a, train=replace(a.train, weights=Path(weights))) for a in grid.arms]
        grid = replace(grid, arms=tuple(arms))
    opened = open_screen(screen)
    with Bar("bench") as bar:

        def show(note: Any) -> None:
            within = note.progress.step / note.progress.total if note.progress else 1.0
            bar.update(note.done + 0.95 * within * (note.done < note.total), note.total, note.text)

        run_grid(
            opened,
            grid,
            Path(out),
            roles=_roles(opened.roles, roles),
            command=command,
            on_note=show,
        )
    return Path(out)


def results(
    folder: Path | str, *, metric: str = "accuracy", level: Literal["image", "well"] = "image"
) -> list[Row]:
    """Aggregated records: means over held-out domains and seeds, with intervals.

    Args:
        folder: A folder with `records.jsonl`.
        metric: A name of `METRICS`, or `all`.
        level: `image` or `well`.

    Raises:
        InputError: There are no records, or none of this metric.
    """
    from evenfield.records import read
    from evenfield.report.tables import summarise

    rows = [
        row
        for row in summarise(read(Path(folder)))
        if row.level == level and metric in ("all", row.metric)
    ]
    if not rows:
        raise InputError(
            f"{folder} holds no record of {metric!r} at the level of the {level}",
            fix="choose another metric or level; --metric all shows every one",
        )
    return rows


def report(folder: Path | str, *, out: Path | None = None) -> Path:
    """Make one self-contained HTML page of a results folder.

    Args:
        folder: A folder with `records.jsonl`.
        out: The page; none = `report.html` in the folder.

    Returns:
        The page's path.
    """
    from evenfield.report.page import build

    return build(Path(folder), Path(out) if out else Path(folder) / "report.html")


def compare(
    tables: Sequence[Path | str] | Mapping[str, Path | str | Profiles],
    out: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    count: str | None = None,
    screen: Path | str | None = None,
    map: Literal["auto", "umap", "pca"] = "auto",
    show: Sequence[str] = (),
    seed: int = 0,
    command: str = "",
) -> ProfileVerdict:
    """Make one HTML page of profiles before and after correction: is the biology kept?

    Args:
        tables: The table before correction, then what corrections made of it: files (called by
            their names), or files and profiles by name.
        out: The page, or an existing folder to put `compare.html` in.
        columns: Columns that play another role: `Metadata_Label`, `_Treatment`, `_Compound`,
            `_Batch` or `_ControlType` to the name of the column to use.
        count: The column with the number of cells; none = one of the usual names.
        screen: A screen with the images of the wells.
        map: `auto` is UMAP where umap-learn is installed, the principal components otherwise.
        show: More columns or features to draw on plates.
        seed: Of the maps.
        command: What the foot of the page says.

    Returns:
        What the page says, in a sentence, with the numbers behind it.

    Raises:
        InputError: The tables have no well in common, or a column is not there.
    """
    from evenfield.data.profiles import read_profiles
    from evenfield.report.profile_page import build_profile_page, origin_of, table_names
    from evenfield.types import Profiles

    if isinstance(tables, Mapping):
        named = dict(tables)
    else:
        paths = [Path(path) for path in tables]
        named = dict(zip(table_names(paths), paths, strict=True))
    return build_profile_page(
        {
            name: given if isinstance(given, Profiles) else read_profiles(given, missing="keep")
            for name, given in named.items()
        },
        Path(out),
        columns=columns,
        count=count,
        screen=None if screen is None else open_screen(screen),
        rule=map,
        show=show,
        seed=seed,
        origin=origin_of(named, command),
    )


def demo(out: Path | str = Path("demo"), *, short: bool = False) -> Path:
    """The main job on a simulated screen: train, adapt to unseen batches, judge, report.

    Args:
        out: Folder; goes on where a killed demo stopped.
        short: Fewer epochs: shows that everything runs, not how well.

    Returns:
        The report's path.
    """
    folder = Path(out)
    screen = folder / "screen"
    if not (screen / "screen.json").exists():
        simulate(screen, preset="demo")
    bench(
        "demo",
        screen,
        folder / "results",
        epochs=2 if short else None,
        command="make demo" if not short else "evenfield demo --short",
    )
    return report(folder / "results", out=folder / "report.html")


def doctor() -> list[tuple[str, str, str]]:
    """What this machine offers, and what is broken in its environment.

    Returns:
        (what, value, advice); an empty advice means that all is well.
    """
    from evenfield.environment import examine

    return examine()


@contextmanager
def warnings_as_lines(write: Any) -> Iterator[None]:
    """Show our warnings as one line each, once, while a verb runs (for the command line)."""
    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = str(message)
        if issubclass(category, EvenfieldWarning) and text not in seen:
            seen.add(text)
            write(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", EvenfieldWarning)
        warnings.showwarning = show
        yield


def rows_as_json(rows: Sequence[Row]) -> str:
    """Rows as a JSON list."""
    from evenfield.report.tables import as_json

    return as_json(rows)
