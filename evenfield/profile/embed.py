"""Features of a trained model for every image of a screen, one plate at a time.

What is done of a plate is kept in a folder beside the output until all plates are, so that a killed
call goes on where it stopped; then the plates become one table. One plate is in memory at a time
(for treatments: one row a well).
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from evenfield.adapt.base import Adapted, Adapter
from evenfield.config import to_dict
from evenfield.data.dataset import Reader
from evenfield.data.profiles import read_profiles
from evenfield.data.sampler import ContextRows
from evenfield.data.store import Screen
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.files import whole, write_json
from evenfield.nn.predictor import Predictor
from evenfield.nn.task_model import TwoPart
from evenfield.profile.aggregate import CELLS, COUNT, Function, aggregate
from evenfield.profile.made_by import KEY
from evenfield.profile.plates import (
    States,
    choose,
    model_id,
    open_states,
    plates,
    reader_for,
    shown,
)
from evenfield.progress import track
from evenfield.records import digest
from evenfield.train.checkpoint import Model
from evenfield.types import Profiles

Level = Literal["image", "well", "treatment"]
Features = Literal["head", "encoder"]
_PLAN = "plan.json"
_CHUNK = 256


def embed(
    model: Model,
    screen: Screen,
    out: Path,
    *,
    adapter: str = "source",
    options: Mapping[str, Any] | None = None,
    level: Level = "image",
    function: Function = "mean",
    trim: float = 0.1,
    adapted: Path | None = None,
    features: Features = "head",
) -> dict[str, Any]:
    """Write the features of every image (controls and empty wells, too), well or treatment.

    The rows are grouped by context (mostly the plate), sorted by its name; inside it they are in
    the manifest's order. The columns are the manifest's `Metadata_` columns and the features
    `<method>_<i>`, float32. Where an adapter is chosen, the model is adapted to each context from
    its unlabelled images, as `predict` does; images of empty wells take no part in that.

    Args:
        model: A trained model.
        screen: The images; labels are carried along, never used.
        out: A `.parquet` file that does not exist yet; `<out>.plates` holds what is done so far.
        adapter: A name of `ADAPTERS`, or `native`.
        options: The adapter's settings.
        level: What a row is.
        function: How images become wells, and wells treatments.
        trim: The share that `trimmed` leaves out at either end.
        adapted: A folder of states (`adapt`, `online`) that are used instead of adapting now; of
            a stream only the plates that it has followed are written.
        features: What the `head` reads; or, of a classifier on a frozen encoder, what the `encoder`
            gives (the class token of a vision transformer), which no label has formed.

    Returns:
        What is written into the file: model, adapter, screen, level and features.

    Raises:
        InputError: `out` exists or is no Parquet file; the screen does not fit the model; a plate
            has no adapted state; the folder of what is done holds something else; the model has no
            frozen encoder.
        StorageError: The disk is full.
    """
    if out.suffix != ".parquet":
        raise InputError(f"{out.name} is no name of a Parquet file", fix="end it in .parquet")
    if out.exists():
        raise InputError(f"the output {out} exists", fix="choose another file or delete this one")
    if features == "encoder":
        encoder_of(model.method.predictor)
    reader = reader_for(model, screen)
    states = None if adapted is None else open_states(adapted, model)
    rule = choose(model, adapter, dict(options or {})) if states is None else states.rule
    about = {
        "method": model.config.method,
        "model": model_id(model),
        "trained_on": model.screen,
        "adapter": rule.name,
        "options": to_dict(rule.config),
        "screen": screen.fingerprint,
        "level": level,
        "function": function if level != "image" else "",
        "trim": trim if level != "image" and function == "trimmed" else 0.0,
    }
    if features != "head":
        about["features"] = features
    contexts = list(plates(screen, model, reader.coded, lone_controls=True))
    if states is not None:
        about["states"] = states.about()
        contexts = states.of_these(contexts)
    if not contexts:
        raise InputError(
            f"no plate of {screen.folder} has an adapted state",
            fix="give the screen that was adapted to",
        )
    folder = _started(out, about)
    files = [folder / f"{digest([context.name])}.parquet" for context in contexts]
    for context, file in zip(track(contexts, f"embed ({rule.name})"), files, strict=True):
        if not file.exists():
            profiles = _plate(model, reader, context, rule, states, features)
            if level != "image":
                profiles = aggregate(profiles, "well", function=function, trim=trim)
            _write(file, [_table(profiles, screen.manifest)], {})
    if level == "treatment":
        wells = read_profiles(files, repeated="keep")
        last = aggregate(
            wells, "treatment", function=function, trim=trim, treatment=model.roles.treatment
        )
        _write(out, [_table(last, screen.manifest)], about)
    else:
        _write(out, (pq.read_table(file) for file in files), about)
    shutil.rmtree(folder)
    return about


def _started(out: Path, about: dict[str, Any]) -> Path:
    """The folder of finished plates; those of another job are dropped, foreign files refused."""
    folder = out.with_name(out.name + ".plates")
    plan = folder / _PLAN
    if folder.exists() and any(folder.iterdir()) and not plan.exists():
        raise InputError(
            f"{folder} exists and holds something else", fix="choose another output or delete it"
        )
    if plan.exists() and json.loads(plan.read_text(encoding="utf-8")) != about:
        warnings.warn(
            f"{folder} holds plates of another model, screen or setting; they are made anew",
            EvenfieldWarning,
            stacklevel=3,
        )
        shutil.rmtree(folder)
    write_json(plan, about)
    return folder


def _plate(
    model: Model,
    reader: Reader,
    context: ContextRows,
    rule: Adapter,
    states: States | None,
    features: Features,
) -> Profiles:
    """The profiles of one context's images, empty wells included."""
    if states is None:
        adapted = rule.fit(model.method.predictor, reader.context(shown(context, rule)))
    else:
        adapted = rule.restore(model.method.predictor, states.state(context.name))
    coded = reader.coded
    rows = np.flatnonzero(coded.context == coded.contexts.index(context.name))
    x = features_of(adapted, reader, rows, features)
    manifest = reader.screen.manifest
    told = [column for column in manifest if str(column).startswith("Metadata_")]
    return Profiles(
        features=x,
        names=tuple(f"{model.config.method}_{i}" for i in range(x.shape[1])),
        metadata=manifest.loc[rows, told].reset_index(drop=True),
    )


def features_of(
    adapted: Adapted, reader: Reader, rows: np.ndarray, features: Features = "head"
) -> Float[np.ndarray, "n d"]:
    """Features before the head, (n, d) float32, of rows of the reader's screen."""
    predictor, parts = adapted.model, []
    network = predictor.features if features == "head" else encoder_of(predictor)
    with torch.inference_mode():
        for start in range(0, len(rows), _CHUNK):
            image = reader.images(rows[start : start + _CHUNK])
            parts.append(network(image).float().cpu())
    return torch.cat(parts).numpy()


def encoder_of(predictor: Predictor) -> Callable[[Tensor], Tensor]:
    """Images to the first token (the only one of a convolutional network) of a frozen encoder.

    Raises:
        InputError: The model has none.
    """
    network = predictor.backbone
    if not isinstance(network, TwoPart):
        raise InputError(
            "the model is no classifier on a frozen encoder: its features are the encoder's",
            fix="leave `features` at head",
        )
    return lambda image: network.encoder(image)[:, 0]


def _table(profiles: Profiles, manifest: pd.DataFrame) -> pa.Table:
    """A table whose columns have the types that they have in the whole manifest.

    A plate without any dose would otherwise write another type than the next one.
    """
    metadata = profiles.metadata
    known = [c for c in metadata if c in manifest and c not in (COUNT, CELLS)]
    schema = {field.name: field for field in pa.Schema.from_pandas(manifest[known])}
    arrays, names = [], []
    for column in metadata.columns:
        kind = schema[column].type if column in schema else None
        arrays.append(pa.Array.from_pandas(metadata[column], type=kind))
        names.append(column)
    x = profiles.features.astype(np.float32, copy=False)
    arrays += [pa.array(np.ascontiguousarray(x[:, i])) for i in range(x.shape[1])]
    return pa.Table.from_arrays(arrays, names=[*names, *profiles.names])


def _write(path: Path, tables: Any, about: dict[str, Any]) -> None:
    """Tables of one schema one below the other, one in memory at a time."""
    writer = None
    with whole(path) as file:
        for table in tables:
            if writer is None:
                schema = table.schema.with_metadata({KEY: json.dumps(about, sort_keys=True)})
                writer = pq.ParquetWriter(file, schema)
            writer.write_table(table.cast(schema))
        if writer is not None:
            writer.close()
