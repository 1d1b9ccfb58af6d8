"""Simulated tables of profiles for several test files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from evenfield.seeds import numpy_generator
from evenfield.types import Profiles


def screen(
    *,
    seed: int = 0,
    num_batches: int = 3,
    plates_per_batch: int = 1,
    num_compounds: int = 8,
    num_doses: int = 1,
    num_labels: int = 4,
    controls: int = 6,
    num_features: int = 20,
    signal: float = 3.0,
    batch: float = 0.0,
    noise: float = 1.0,
) -> Profiles:
    """Every treatment once on every plate; labels, batches and noise are random directions."""
    rng = numpy_generator(seed, "screen")
    of_label = rng.normal(size=(num_labels, num_features)) * signal
    of_compound = rng.normal(size=(num_compounds, num_features)) * signal * 0.2
    rows, features = [], []
    for b in range(num_batches):
        shift = rng.normal(size=num_features) * batch
        for p in range(plates_per_batch):
            wells = [(c, d) for c in range(num_compounds) for d in range(num_doses)]
            for number, (c, d) in enumerate([*wells, *[(-1, 0)] * controls]):
                mean = (
                    np.zeros(num_features) if c < 0 else of_label[c % num_labels] + of_compound[c]
                )
                features.append(mean + shift + rng.normal(size=num_features) * noise)
                rows.append(
                    {
                        "Metadata_Batch": f"b{b}",
                        "Metadata_Plate": f"b{b}p{p}",
                        "Metadata_Well": f"{'ABCDEFGHIJKLMNOP'[number // 24]}{number % 24 + 1:02d}",
                        "Metadata_Compound": "" if c < 0 else f"c{c:02d}",
                        "Metadata_Treatment": "" if c < 0 else f"c{c:02d}@{d}",
                        "Metadata_Label": "" if c < 0 else f"moa{c % num_labels}",
                        "Metadata_ControlType": "negcon" if c < 0 else "trt",
                        "Metadata_CellCount": int(rng.integers(50, 300)),
                    }
                )
    names = tuple(f"f{i}" for i in range(num_features))
    return Profiles(features=np.stack(features), names=names, metadata=pd.DataFrame(rows))


def shuffled_rows(profiles: Profiles, seed: int = 0) -> Profiles:
    """The same rows in another order."""
    return profiles[numpy_generator(seed, "rows").permutation(len(profiles))]


def with_column(profiles: Profiles, name: str, values: object) -> Profiles:
    """The same rows with a column replaced."""
    return replace(profiles, metadata=profiles.metadata.assign(**{name: values}))
