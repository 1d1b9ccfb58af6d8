"""Writing a screen: parallel, resumable, all or nothing.

A writer works in a folder with `.partial` at the end of its name, which becomes the screen by one
rename when everything is on the disk. What a kill leaves there, the next writer of the same
content goes on with; the result is the same to the byte.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd

from evenfield.data import pixelfile
from evenfield.data.manifest import Roles, check_manifest, prepare_manifest, require
from evenfield.data.names import as_text
from evenfield.data.screen import INFO, MANIFEST, PIXELS, SCHEMA, STATISTICS
from evenfield.data.screen import Screen as Screen
from evenfield.data.statistics import measure
from evenfield.errors import EvenfieldWarning, InputError, StorageError
from evenfield.records import digest, file_sha256

_DONE, _PLAN = "done.bin", "plan.json"
NUM_ROWS = 20
"""How many rows of a finding `screen.json` keeps; `check_manifest` finds them all again."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ScreenWriter:
    """Context manager that writes the pixels of a table of images.

    `write` may be called from several threads. Leaving without an error finishes the screen
    (statistics, checksums, one rename); leaving with one keeps what was written for a later try,
    except where the disk is full: then nothing is left behind.

    Args:
        folder: Where the screen will lie; must not exist yet unless `overwrite`.
        manifest: One row per image; brought into form and checked here.
        channels: Their names.
        shape: Channels, height and width of an image.
        dtype: uint8 or uint16.
        roles: Which column plays which role.
        pixel_size_um: Side of a pixel in micrometres, where known.
        provenance: Where the pixels come from (JSON values; part of what a resumed job compares).
        overwrite: Replace a screen that lies there, once the new one is complete.

    Raises:
        InputError: The folder exists, the table has errors, or an argument makes no sense.
        StorageError: There is not enough space.
    """

    sync_seconds = 5.0
    """How much work a kill may lose: pixels are forced to the disk, then marked as done."""

    def __init__(
        self,
        folder: Path | str,
        manifest: pd.DataFrame,
        *,
        channels: Sequence[str],
        shape: tuple[int, int, int],
        dtype: np.dtype[Any] | type | str,
        roles: Roles | None = None,
        pixel_size_um: float | None = None,
        provenance: Mapping[str, Any],
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.partial = self.folder.with_name(self.folder.name + ".partial")
        self.overwrite = overwrite
        self.refuse_existing(self.folder, overwrite=overwrite)
        self.channels, self.shape = tuple(channels), tuple(int(side) for side in shape)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._check_arguments()
        self.roles = roles or Roles()
        self.manifest = prepare_manifest(manifest)
        self.findings = check_manifest(self.manifest, self.roles)
        require(self.findings)
        self._info: dict[str, Any] = {
            "schema": SCHEMA,
            "num_images": len(self.manifest),
            "channels": list(self.channels),
            "shape": list(self.shape),
            "dtype": self.dtype.name,
            "pixel_size_um": pixel_size_um,
            "roles": asdict(self.roles),
            "provenance": dict(provenance),
        }
        self._lock, self._syncing = threading.Lock(), threading.Lock()
        self._file: pixelfile.PixelFile | None = None
        self._done = np.zeros(len(self.manifest), np.uint8)
        self._pending: list[np.ndarray] = []
        self._synced = time.monotonic()
        self._disk_full = False

    @staticmethod
    def refuse_existing(folder: Path, *, overwrite: bool) -> None:
        """Refuse an output folder that exists; `overwrite` replaces nothing but a screen.

        Raises:
            InputError: The folder exists (and is no screen that may be replaced).
        """
        if folder.exists() and not overwrite:
            raise InputError(
                f"{folder} exists already", fix="choose another folder, or pass overwrite"
            )
        if folder.exists() and not (folder / INFO).is_file():
            raise InputError(
                f"{folder} is not a screen, so it is not overwritten", fix="choose another folder"
            )

    def _check_arguments(self) -> None:
        if self.dtype.kind != "u" or self.dtype.itemsize > 2:
            raise InputError(
                f"pixels of type {self.dtype} cannot be stored", fix="give uint8 or uint16"
            )
        if len(self.shape) != 3 or len(self.channels) != self.shape[0] or min(self.shape) < 1:
            raise InputError(
                f"{len(self.channels)} channel names do not fit images of shape {self.shape}",
                fix="give one name per channel and the shape (channels, height, width)",
            )
        if len(set(self.channels)) != len(self.channels):
            raise InputError(
                f"channel names repeat: {', '.join(self.channels)}", fix="give each its own name"
            )

    @property
    def todo(self) -> np.ndarray:
        """Rows that are not written yet, ascending."""
        return np.flatnonzero(self._done == 0)

    def __enter__(self) -> ScreenWriter:
        try:
            with self._storage():
                plan = digest({**self._info, "manifest": _table_hash(self.manifest)})
                if not self._resumes(plan):
                    if self.partial.exists():
                        shutil.rmtree(self.partial)
                    self._start(plan)
                self._file = pixelfile.PixelFile(self.partial / PIXELS, self._size, self.dtype)
        except StorageError:
            self._leave()
            raise
        return self

    def _resumes(self, plan: str) -> bool:
        """Take up what an earlier writer left, if it is of the same content."""
        try:
            old = json.loads((self.partial / _PLAN).read_text())["plan"]
            done = np.fromfile(self.partial / _DONE, np.uint8)
        except (OSError, ValueError, KeyError):
            return False
        if old != plan or len(done) != len(self._done):
            if done.any():
                warnings.warn(
                    f"{self.partial} holds {int(done.sum())} images of another table or of other "
                    "options; they are dropped and the work starts anew",
                    EvenfieldWarning,
                    stacklevel=3,
                )
            return False
        self._done = done
        return True

    def _start(self, plan: str) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        size = int(np.prod(self._size, dtype=np.int64)) * self.dtype.itemsize
        free = shutil.disk_usage(self.folder.parent).free
        if size > free:
            raise OSError(errno.ENOSPC, f"{size / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")
        self.partial.mkdir()
        self.manifest.to_parquet(self.partial / MANIFEST, index=False)
        pixelfile.create(self.partial / PIXELS, self._size, self.dtype)
        (self.partial / _DONE).write_bytes(bytes(len(self._done)))
        # Written last: a plan on the disk means that everything above is.
        (self.partial / _PLAN).write_text(json.dumps({"plan": plan}))

    @property
    def _size(self) -> tuple[int, ...]:
        return (len(self._done), *self.shape)

    def write(self, rows: Sequence[int] | np.ndarray | slice, images: np.ndarray) -> None:
        """Write images (n, C, H, W) of the given rows; again writing a row replaces it.

        Raises:
            InputError: Shape, type or rows do not fit.
            StorageError: The disk is full.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self._done)))
        index = np.asarray(rows, dtype=np.int64)
        if images.shape != (len(index), *self.shape) or images.dtype != self.dtype:
            raise InputError(
                f"images {images.shape} {images.dtype} do not fit {len(index)} rows of "
                f"{self.shape} {self.dtype}",
                fix="give images as (rows, channels, height, width) of the writer's type",
            )
        if len(index) and not 0 <= index.min() <= index.max() < len(self._done):
            raise InputError(
                f"rows {index.min()} to {index.max()} are not in a table of {len(self._done)}",
                fix="number rows from 0",
            )
        if self._file is None:
            raise RuntimeError("a ScreenWriter writes inside its `with` block")
        with self._storage():
            self._file.write(index, np.ascontiguousarray(images, dtype=self.dtype))
            with self._lock:
                self._pending.append(index)
                due = time.monotonic() - self._synced >= self.sync_seconds
                if due:  # the other threads go on decoding while this one waits for the disk
                    self._synced = time.monotonic()
            if due:
                self._checkpoint()

    def _checkpoint(self) -> None:
        """Force the pixels to the disk, then mark them: a mark never precedes its pixels."""
        with self._syncing:
            with self._lock:
                written, self._pending = self._pending, []
            if written and self._file is not None:
                self._file.sync()
                self._done[np.concatenate(written)] = 1
                temporary = self.partial / (_DONE + ".tmp")
                temporary.write_bytes(self._done.tobytes())
                temporary.replace(self.partial / _DONE)
            self._synced = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
            elif not self._disk_full:
                with self._storage():
                    self._checkpoint()
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._disk_full:
            shutil.rmtree(self.partial, ignore_errors=True)

    def finish(self, tick: Callable[[int], None] = lambda num: None) -> None:
        """Statistics, checksums, `screen.json`, and the rename that makes it a screen.

        Raises:
            InputError: Rows were never written.
            StorageError: The disk is full.
        """
        if self._file is None:
            return
        with self._storage():
            self._checkpoint()
            if len(self.todo):
                raise InputError(
                    f"{len(self.todo)} of {len(self._done)} images were never written "
                    f"(rows {self.todo[:5].tolist()} first)",
                    fix="write every row before leaving the writer",
                )
            pixels = np.load(self.partial / PIXELS, mmap_mode="r")
            statistics, checksum = measure(
                pixels, self.manifest, channels=self.channels, roles=self.roles, tick=tick
            )
            del pixels
            statistics.to_parquet(self.partial / STATISTICS, index=False)
            content = {"manifest": _table_hash(self.manifest), "pixels": checksum}
            info = {
                **self._info,
                "fingerprint": digest({**content, "channels": list(self.channels)}),
                "checksums": {
                    PIXELS: checksum,
                    **{name: file_sha256(self.partial / name) for name in (MANIFEST, STATISTICS)},
                },
                "findings": [
                    {
                        **asdict(finding),
                        "rows": finding.rows[:NUM_ROWS],
                        "num_rows": len(finding.rows),
                    }
                    for finding in self.findings
                ],
            }
            text = json.dumps(info, indent=1, sort_keys=True, allow_nan=False)
            (self.partial / INFO).write_text(text + "\n", encoding="utf-8")
            self._publish()
            self._file.close()
            self._file = None

    def _publish(self) -> None:
        for name in (MANIFEST, PIXELS, STATISTICS, INFO):
            with (self.partial / name).open("rb") as file:
                os.fsync(file.fileno())
        for name in (_DONE, _PLAN):
            (self.partial / name).unlink()
        old = self.folder.with_name(self.folder.name + ".old")
        if self.folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.folder.rename(old)
        self.partial.rename(self.folder)
        if self.overwrite:
            shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Turn what a disk says into a `StorageError`."""
        try:
            yield
        except (InputError, StorageError):
            raise
        except OSError as error:
            self._disk_full = error.errno in _FULL
            raise StorageError(
                f"cannot write {self.folder}: {error.strerror or error}",
                fix="free some space or choose a folder on another disk; nothing was left behind"
                if self._disk_full
                else f"mend it and run again: the work goes on from {self.partial.name}",
            ) from error


def _table_hash(manifest: pd.DataFrame) -> str:
    """Hash of names and values, the same for every version of the file format's writer."""
    total = hashlib.sha256()
    for column in manifest.columns:
        total.update(("\x1e" + str(column) + "\x1f").encode())
        total.update("\x1f".join(as_text(manifest[column])).encode())
    return total.hexdigest()
