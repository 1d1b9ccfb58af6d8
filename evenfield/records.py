"""Results as lines of JSON: a record is one measured number, or one artifact (a file beside it).

A results folder holds `records.jsonl` and `artifacts/`. A line is appended whole or not at all; a
line that a crash cut short is ignored on reading and overwritten by the next append.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from evenfield.errors import InputError, StorageError

FILE = "records.jsonl"
ORACLE, TRANSDUCTIVE = " (oracle selection)", " (transductive)"
"""Marks behind a protocol's name: the model was selected on the test images; statistics of the new
units were read, in a benchmark whose rules forbid that. Marked results are never compared with
unmarked ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of results.

    Attributes:
        kind: `value` (a measured number) or `artifact` (a file).
        protocol: in-domain, new-batch, new-source, ..., with its marks (`marks_of`); "" for what
            belongs to no protocol.
        method: The training method, as named in `METHODS` (with its switches, e.g.
            `cs-arm-bn[controls]`).
        adapter: The adapter, as named in `ADAPTERS`.
        metric: The metric of a value; what an artifact shows (e.g. `embedding`).
        unit: What was scored: `all`, or the name of one domain or plate.
        unit_role: `all`, `domain`, `context` or `group` (of a benchmark's own metric).
        level: `image` or `well`.
        value: The number (None for an artifact).
        num: How many items were scored.
        seed: The seed of the training run.
        fold: Which domains were held out, as a name.
        alpha: Dirichlet concentration of the label shift; None = as the plate is.
        num_images: Perturbed images in a context; None = all of the plate.
        num_controls: Controls in a context; None = all of the plate.
        path: An artifact's file, relative to the records' folder.
        sha256: Its checksum.
        screen: Fingerprint of the screen.
        config: Hash of the configuration that produced it.
        cell: Which cell of a grid wrote it; a cell that ran twice counts once (the last time).
        versions: Of evenfield and torch.
        extra: Anything else that the report may show (JSON values only).
    """

    kind: str
    metric: str
    protocol: str = ""
    method: str = ""
    adapter: str = ""
    unit: str = "all"
    unit_role: str = "all"
    level: str = "image"
    value: float | None = None
    num: int = 0
    seed: int = 0
    fold: str = ""
    alpha: float | None = None
    num_images: int | None = None
    num_controls: int | None = None
    path: str = ""
    sha256: str = ""
    screen: str = ""
    config: str = ""
    cell: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line, keys sorted, without what has its default; NaN is refused."""
        plain = asdict(type(self)(kind="", metric=""))
        told = {key: value for key, value in asdict(self).items() if value != plain[key]}
        return json.dumps(told, sort_keys=True, allow_nan=False, separators=(",", ":"))

    def identity(self) -> tuple[str, ...]:
        """What two records of one measurement share."""
        return (
            self.cell, self.kind, self.protocol, self.metric, self.unit_role, self.unit, self.level,
        )  # fmt: skip

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record of a line; keys that this version does not know are dropped."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in json.loads(line).items() if key in known})


def marks_of(protocol: str) -> tuple[str, str]:
    """A protocol's plain name, and its marks.

    >>> marks_of("new-batch (transductive)"), marks_of("in-domain")
    (('new-batch', ' (transductive)'), ('in-domain', ''))
    """
    start = min((protocol.find(mark) for mark in (ORACLE, TRANSDUCTIVE) if mark in protocol),
                default=len(protocol))  # fmt: skip
    return protocol[:start], protocol[start:]


def digest(value: Mapping[str, Any] | list[Any] | str) -> str:
    """A short hash of a JSON value; equal values give equal hashes on every machine.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append(folder: Path, records: Iterable[Record]) -> None:
    """Append records to `folder/records.jsonl`, synced to the disk before returning.

    Raises:
        StorageError: The disk is full or read-only.
    """
    text = "".join(record.to_json() + "\n" for record in records)
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell():  # a line cut short by a crash must not swallow the next one
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    whole = file.read().rfind(b"\n") + 1
                    file.truncate(whole)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}", fix="free some space or choose another folder"
        ) from error


def read(folder: Path) -> list[Record]:
    """All whole records of a folder, in the order of writing; of repeated ones the last.

    Raises:
        InputError: There is no records file.
    """
    path = folder / FILE
    if not path.exists():
        raise InputError(
            f"there are no records in {folder}", fix="give the folder that `evenfield bench` wrote"
        )
    found: dict[Any, Record] = {}
    for number, record in enumerate(_lines(path)):
        found[record.identity() if record.cell else number] = record
    return list(found.values())


def _lines(path: Path) -> Iterator[Record]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and line.strip():
            yield Record.from_json(line)
