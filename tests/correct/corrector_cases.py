"""Profiles of a small made-up screen, for the tests of correctors."""

from dataclasses import replace

import numpy as np
import pandas as pd

from evenfield.seeds import numpy_generator
from evenfield.types import Profiles


def fake_profiles(
    num_batches=3,
    plates=2,
    controls=24,
    treated=36,
    d=6,
    seed=0,
    shift=2.0,
    scale=0.3,
    dtype=np.float32,
):
    """Wells of plates in batches: offset and gain by plate, 6 treatments, a cell-count effect."""
    rng = numpy_generator(seed, "profiles")
    mix = np.eye(d) + 0.4 * rng.normal(size=(d, d)) / np.sqrt(d)
    effects = 2.0 * rng.normal(size=(6, d))
    slope = 0.3 * rng.normal(size=d)
    features, rows = [], []
    for b in range(num_batches):
        for p in range(plates):
            num = controls + treated
            treatment = np.concatenate([np.full(controls, -1), np.arange(treated) % 6])
            count = rng.integers(80, 120, num)
            clean = rng.normal(size=(num, d)) @ mix + np.where(
                treatment[:, None] >= 0, effects[treatment], 0.0
            )
            clean = clean + 5 + np.outer((count - 100) / 10, slope)
            gain = np.exp(scale * rng.normal(size=d))
            features.append(clean * gain + shift * rng.normal(size=d))
            for i in range(num):
                control = treatment[i] < 0
                rows.append(
                    {
                        "Metadata_Batch": f"b{b}",
                        "Metadata_Plate": f"b{b}p{p}",
                        "Metadata_Well": f"{chr(65 + i // 12)}{i % 12 + 1:02d}",
                        "Metadata_Treatment": "DMSO" if control else f"t{treatment[i]}",
                        "Metadata_ControlType": "negcon" if control else "trt",
                        "Metadata_CellCount": int(count[i]),
                    }
                )
    names = tuple(f"f{j}" for j in range(d))
    return Profiles(
        features=np.concatenate(features).astype(dtype), names=names, metadata=pd.DataFrame(rows)
    )


def with_metadata(profiles, **columns):
    """The same profiles with some metadata columns replaced."""
    return replace(profiles, metadata=profiles.metadata.assign(**columns))


def of(profiles, column, *values):
    """The rows whose column has one of the values."""
    return profiles[profiles.metadata[column].isin(values).to_numpy()]


def controls_of(profiles):
    return of(profiles, "Metadata_ControlType", "negcon")


def treated_of(profiles):
    return of(profiles, "Metadata_ControlType", "trt")
