"""Which model made a table of profiles: said in the Parquet file's own metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

KEY = "evenfield"


def made_by(path: Path) -> dict[str, Any]:
    """What `embed` wrote about the model into a file; empty for other tables."""
    if not path.is_file() or path.suffix != ".parquet":
        return {}
    stored = pq.read_schema(path).metadata or {}
    return json.loads(stored.get(KEY.encode(), b"{}"))


def identifier_of(path: Path) -> str | None:
    """A model's name in the Cell Painting Gallery, NETWORK_DATASET_HASH, if the table says it.

    The network is the method, the data set the screen that the model was trained on (its hash).
    """
    about = made_by(path)
    if not about:
        return None
    return f"evenfield-{about['method']}_{about['trained_on'][:8]}_{about['model']}"
