"""Plates into a screen: decoded once, in parallel, resumable, all or nothing."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from evenfield.config import to_dict
from evenfield.data.decode import check_image
from evenfield.data.illumination import PlateLight, enlarge, reduce_field
from evenfield.data.manifest import Roles, check_manifest, prepare_manifest, require
from evenfield.data.process import apply
from evenfield.data.screen import Screen
from evenfield.data.sources.base import SOURCES, Listing
from evenfield.data.store import ScreenWriter
from evenfield.environment import num_cores
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.progress import Bar, track

T = TypeVar("T")
S = TypeVar("S")
NUM_NAMED = 20
"""How many faulty images an error names with their file."""


def ingest(
    source: str,
    config: Any,
    out: Path | str,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    roles: Roles | None = None,
) -> Screen:
    """Read plates into a screen.

    The table is checked before a pixel is read; then every image is decoded, checked (readable,
    finite, not empty, of one size and type) and written. What a kill leaves is taken up by the
    next call with the same settings; the result is the same to the byte.

    Args:
        source: A name of `SOURCES`.
        config: The reader's `Config`.
        out: Folder of the screen.
        workers: Threads that decode; none = one a core.
        overwrite: Replace a screen that lies there, once the new one is complete.
        roles: Which column plays which role.

    Raises:
        InputError: The folder exists, the table has errors, or images cannot be used: all are
            counted, the first 20 named.
        StorageError: The disk is full; nothing is left.
    """
    out = Path(out)
    ScreenWriter.refuse_existing(out, overwrite=overwrite)
    listing = SOURCES[source](config).listing()
    fields = prepare_manifest(listing.manifest)
    require(check_manifest(fields, roles or Roles()))
    for note in listing.notes:
        warnings.warn(note, EvenfieldWarning, stacklevel=2)
    num_workers = workers or num_cores()
    decoder = _Decoder(listing, fields)
    if listing.process.illumination:
        with _pool(num_workers) as pool:
            decoder.measure_light(pool, 2 * num_workers)
        decoder.raise_faults()
    sample, pixel_size_um = decoder.probe()
    writer = ScreenWriter(
        out,
        _one_row_per_crop(fields, listing.process.num_crops),
        channels=listing.channels,
        shape=(sample.shape[1], sample.shape[2], sample.shape[3]),
        dtype=sample.dtype,
        roles=roles,
        pixel_size_um=pixel_size_um,
        provenance={"reader": source, "settings": to_dict(config), **listing.provenance},
        overwrite=overwrite,
    )
    with writer:
        todo = np.unique(writer.todo // listing.process.num_crops).tolist()
        with _pool(num_workers) as pool:
            done = _in_order(
                pool, lambda field: decoder.store(field, writer), todo, 4 * num_workers
            )
            for _ in track(done, f"ingest {out.name}", total=len(todo)):
                pass
        decoder.raise_faults()
        _finish(writer, out.name)
    return Screen.open(out)


class _Decoder:
    """Decodes, checks and processes fields; keeps what is wrong with them to tell it together."""

    def __init__(self, listing: Listing, fields: pd.DataFrame) -> None:
        self._listing = listing
        plates: Any = fields.groupby(["Metadata_Source", "Metadata_Plate"], sort=True).indices
        self._plates: list[np.ndarray] = list(plates.values())
        self._plate = np.empty(len(fields), np.int64)
        for plate, rows in enumerate(self._plates):
            self._plate[rows] = plate
        self._light: list[tuple[np.ndarray, np.ndarray]] = []
        self._enlarged = lru_cache(maxsize=4)(self._enlarge)
        self._sample: tuple[tuple[int, ...], np.dtype[Any]] | None = None
        self._faults: dict[int, InputError] = {}
        self._lock = Lock()

    def _enlarge(self, plate: int, height: int, width: int) -> np.ndarray:
        return enlarge(self._light[plate][0], height, width)

    def _field(self, row: int) -> np.ndarray:
        field = self._listing.read(row)
        listing = self._listing
        check_image(field, listing.name(row), listing.channels, listing.may_be_empty(row))
        return field

    def _fault(self, row: int, error: InputError) -> None:
        with self._lock:
            self._faults[row] = error

    def measure_light(self, pool: ThreadPoolExecutor, window: int) -> None:
        """One pass over all fields: each plate's illumination function."""
        num_plates = len(self._plates)
        for rows in track(self._plates, "illumination", total=num_plates):
            light = PlateLight()
            parts = _in_order(pool, self._reduced, rows.tolist(), window)
            for row, part in zip(rows.tolist(), parts, strict=True):
                if part is not None:
                    try:
                        light.add(part)
                    except InputError as error:
                        name = self._listing.name(row)
                        self._fault(row, InputError(f"{name}: {error.problem}", fix=error.fix))
            if light.num_images:
                self._light.append(light.function())

    def _reduced(self, row: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]] | None:
        try:
            return reduce_field(self._field(row))
        except InputError as error:
            self._fault(row, error)
            return None

    def _crops(self, row: int) -> tuple[np.ndarray, int]:
        """The crops of a field (n, C, H, W) and the height that it had."""
        field = self._field(row)
        illumination, cap = None, None
        if self._light:
            plate = int(self._plate[row])
            illumination = self._enlarged(plate, field.shape[1], field.shape[2])
            cap = self._light[plate][1]
        try:
            crops = apply(
                field,
                self._listing.process,
                illumination=illumination,
                cap=cap,
                pixel_size_um=self._listing.size_of(row),
            )
        except InputError as error:
            problem = f"{self._listing.name(row)}: {error.problem}"
            raise InputError(problem, fix=error.fix) from error
        return crops, field.shape[1]

    def probe(self) -> tuple[np.ndarray, float | None]:
        """The crops of the first usable field, and the side of a stored pixel in micrometres.

        Raises:
            InputError: No field can be used.
        """
        for row in range(len(self._plate)):
            try:
                crops, height = self._crops(row)
            except InputError as error:
                self._fault(row, error)
                continue
            self._sample = crops.shape, crops.dtype
            process = self._listing.process
            size, resize = process.pixel_size_um or self._listing.pixel_size_um, process.resize
            return crops, size * height / resize[0] if size and resize else size
        self.raise_faults()
        raise AssertionError("a table that was checked has rows")

    def store(self, row: int, writer: ScreenWriter) -> None:
        """Write the crops of a field, or keep what is wrong with it."""
        try:
            crops, _ = self._crops(row)
            if (crops.shape, crops.dtype) != self._sample:
                assert self._sample is not None
                shape, dtype = self._sample
                raise InputError(
                    f"{self._listing.name(row)}: {_size(crops.shape, crops.dtype)}, "
                    f"the first image is {_size(shape, dtype)}",
                    fix="give images of one size and type, or let `resize` make them so",
                )
        except InputError as error:
            self._fault(row, error)
            return
        num = len(crops)
        writer.write(np.arange(row * num, (row + 1) * num), crops)

    def raise_faults(self) -> None:
        """Refuse all faulty images at once.

        Raises:
            InputError: There are some.
        """
        if not self._faults:
            return
        found = [f"row {row}: {self._faults[row].problem}" for row in sorted(self._faults)]
        more = f"\n  and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
        fixes = dict.fromkeys(self._faults[row].fix for row in sorted(self._faults)[:NUM_NAMED])
        raise InputError(
            f"{len(found)} of {len(self._plate)} images cannot be used:\n  "
            + "\n  ".join(found[:NUM_NAMED])
            + more,
            fix="; ".join(fixes) + "; or drop these rows from the table",
        )


def _size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{shape[1]} channels of {shape[2]} x {shape[3]} {dtype}"


def _one_row_per_crop(fields: pd.DataFrame, num: int) -> pd.DataFrame:
    """Each row `num` times, the crop's number in its field (from 1) as `Metadata_Object`."""
    if num == 1:
        return fields
    crops = fields.loc[fields.index.repeat(num)].reset_index(drop=True)
    number = np.tile(np.arange(1, num + 1), len(fields)).astype(str)
    field = crops["Metadata_Object"].astype(str)
    crops["Metadata_Object"] = np.where(field == "0", number, field + "." + number)
    return crops


def _finish(writer: ScreenWriter, name: str) -> None:
    total, seen = len(writer.manifest), 0
    with Bar(f"measure {name}") as bar:

        def tick(num: int) -> None:
            nonlocal seen
            seen += num
            bar.update(seen, total, "statistics, checksums")

        writer.finish(tick)


@contextmanager
def _pool(num: int) -> Iterator[ThreadPoolExecutor]:
    """Threads: decoding releases the interpreter's lock, and pixels need no copy to be shared."""
    pool = ThreadPoolExecutor(num, thread_name_prefix="decode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[S], T], items: Iterable[S], window: int
) -> Iterator[T]:
    """Results in the order of the items, at most `window` of them waiting in memory."""
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
