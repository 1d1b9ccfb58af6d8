"""Files are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from evenfield.errors import EvenfieldError, StorageError


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its name when all of it is on the disk.

    It is written as `path` with `.partial` behind it, synced, and renamed. When anything goes wrong
    (in the block, too), what was at `path` before stays and the partial file is removed.

    Args:
        path: The file; its folder is made.

    Raises:
        StorageError: The disk is full or read-only.
    """
    partial = path.with_name(path.name + ".partial")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Inside the block, a system's error is one of storage that names `path`.

    Raises:
        StorageError: The disk is full or read-only.
    """
    try:
        yield
    except EvenfieldError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            fix="free some space or choose another folder",
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all.

    Raises:
        StorageError: The disk is full or read-only.
    """
    with whole(path) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
