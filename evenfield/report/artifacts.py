"""The files beside the records, read only if they are what the records say."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from evenfield.errors import InputError
from evenfield.records import Record, file_sha256

T = TypeVar("T")

COLUMNS = {
    "predictions": (
        "Metadata_Batch",
        "Metadata_Plate",
        "Metadata_Well",
        "label",
        "predicted",
        "confidence",
    ),
    "embedding": ("x", "y", "batch", "plate", "label", "control", "split"),
    "control-drift": ("plate", "batch", "split", "shift"),
}
ARRAYS = {
    "example-fields": ("images", "title", "group", "batch"),
    "mixes": ("image", "content", "mix", "title", "score_name", "score"),
}
KINDS = {*COLUMNS, *ARRAYS, "findings", "screen"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """The artifacts of a results folder, by kind; each entry is (its record, its content).

    Attributes:
        predictions: Tables of scored images.
        embedding: Tables of coordinates.
        drift: Tables of the controls' distance from training.
        fields: Example images.
        mixes: Content maps and mixes of ContriMix.
        findings: What the door found.
        screen: What was judged.
    """

    predictions: list[tuple[Record, pd.DataFrame]]
    embedding: list[tuple[Record, pd.DataFrame]]
    drift: list[tuple[Record, pd.DataFrame]]
    fields: list[tuple[Record, dict[str, np.ndarray]]]
    mixes: list[tuple[Record, dict[str, np.ndarray]]]
    findings: list[dict[str, Any]]
    screen: dict[str, Any]


def load(folder: Path, records: Iterable[Record]) -> Artifacts:
    """Read and verify every artifact that the records name; of one written twice, the last.

    Raises:
        InputError: A kind that this version does not know, a path that leaves the folder, a file
            that is missing, was changed (SHA-256), or does not hold what its kind asks for.
    """
    named: dict[tuple[object, ...], Record] = {}
    for record in records:
        if record.kind == "artifact":
            if record.metric not in KINDS:
                raise InputError(
                    f"{record.path}: the artifact kind {record.metric!r} is unknown",
                    fix=f"use a newer evenfield (this one knows {', '.join(sorted(KINDS))})",
                )
            named[(record.metric, record.path)] = record

    def of(kind: str, read: Callable[[Path], T]) -> list[tuple[Record, T]]:
        chosen = [record for record in named.values() if record.metric == kind]
        return [(record, _read(folder, record, read)) for record in chosen]

    findings = {json.dumps(f, sort_keys=True): f for _, part in of("findings", _list) for f in part}
    screens = of("screen", _mapping)
    return Artifacts(
        predictions=of("predictions", partial(_table, kind="predictions")),
        embedding=of("embedding", partial(_table, kind="embedding")),
        drift=of("control-drift", partial(_table, kind="control-drift")),
        fields=of("example-fields", _fields),
        mixes=of("mixes", _mixes),
        findings=list(findings.values()),
        screen=screens[-1][1] if screens else {},
    )


def _read(folder: Path, record: Record, read: Callable[[Path], T]) -> T:
    path = folder / record.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"the artifact {record.path!r} lies outside of {folder}",
            fix="keep artifacts in the results folder and paths relative to it",
        )
    if not path.is_file():
        raise InputError(
            f"the artifact {path} is missing",
            fix="copy the results folder as a whole, or run the benchmark again",
        )
    if file_sha256(path) != record.sha256:
        raise InputError(
            f"the artifact {path} is not the file that was recorded (its SHA-256 differs)",
            fix="restore the file, or run the benchmark again into a new folder",
        )
    try:
        return read(path)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"the artifact {path} cannot be read as {record.metric}: {error}",
            fix="run the benchmark again into a new folder",
        ) from error


def _table(path: Path, kind: str) -> pd.DataFrame:
    table = pd.read_parquet(path)
    missing = [name for name in COLUMNS[kind] if name not in table]
    if missing:
        raise KeyError(f"no column {', '.join(missing)}")
    return table


def _arrays(path: Path, kind: str) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        return {name: file[name] for name in ARRAYS[kind]}


def _fields(path: Path) -> dict[str, np.ndarray]:
    arrays = _arrays(path, "example-fields")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (n, h, w, 3)")
    if any(len(array) != len(images) for array in arrays.values()):
        raise ValueError("images, titles, groups and batches differ in number")
    return arrays


def _mixes(path: Path) -> dict[str, np.ndarray]:
    arrays = _arrays(path, "mixes")
    k = len(arrays["title"])
    drawn = ("image", "content", "mix")
    if any(arrays[name].dtype != np.uint8 or len(arrays[name]) != k for name in drawn):
        raise ValueError("images, content maps and mixes are not uint8, or differ in number")
    if arrays["mix"].shape[:2] != (k, k) or arrays["mix"].shape[-1] != 3:
        raise ValueError(f"mixes are {arrays['mix'].shape}, not ({k}, {k}, h, w, 3)")
    return arrays


def _list(path: Path) -> list[dict[str, Any]]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def _mapping(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value
