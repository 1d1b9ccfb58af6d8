"""How simulated batch effects compare with those of real pixels (BBBC021 crops, ten weeks).

    python benchmarks/simulator_realism.py [FOLDER OF THE CROPS]

For the real screen (taxol crops: one treatment in every week; DMSO crops are too few) and for the
simulated one (DMSO fields; ten batches of five plates), on as many images of each batch:

* standard deviation of log mean intensity between batches, between the plates of a batch, and
  between the images of a plate, averaged over channels;
* how well intensity statistics alone (mean, standard deviation, 5 percentiles of each channel)
  tell the batch: random forest, 5-fold cross-validation by plate and by image, against chance.

Prints a table and appends to benchmarks/records/simulator_realism.jsonl. Writes no pixels.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score
from turns import keep

from evenfield.data.simulate import (
    EffectConfig,
    LayoutConfig,
    Levels,
    SimulationConfig,
    effects,
    layout,
    render,
)
from evenfield.seeds import derive, numpy_generator

CROPS = Path(__file__).parents[2] / "shared" / "data" / "bbbc021_cells_10weeks"
SEEDS = 3
PER_BATCH = 29  # the week with the fewest taxol crops


def features(images: np.ndarray) -> np.ndarray:
    """(n, 7 c) intensity statistics of (n, c, h, w) images."""
    flat = images.reshape(*images.shape[:2], -1).astype(np.float64)
    parts = [flat.mean(2), flat.std(2), *np.percentile(flat, [1, 25, 50, 75, 99], axis=2)]
    return np.concatenate(parts, axis=1)


def spreads(mean: np.ndarray, batch: pd.Series, plate: pd.Series) -> dict[str, float]:
    """Standard deviations of log mean intensity at the three levels (square roots of variance
    components by the method of moments, averaged over channels as variances)."""
    table = pd.DataFrame(np.log(mean)).groupby([batch.to_numpy(), plate.to_numpy()])
    inside, count = table.var().mean(), table.size()
    plates = table.mean()
    size = 1 / (1 / count).mean()
    by_batch = plates.groupby(level=0)
    between_plates = (by_batch.var().mean() - inside / size).clip(lower=0)
    num = 1 / (1 / by_batch.size()).mean()
    between = (by_batch.mean().var() - between_plates / num - inside / size / num).clip(lower=0)
    return {
        "sd of log mean, between batches": float(np.sqrt(between.mean())),
        "sd of log mean, between plates of a batch": float(np.sqrt(between_plates.mean())),
        "sd of log mean, between images of a plate": float(np.sqrt(inside.mean())),
    }


def recognise(x: np.ndarray, batch: pd.Series, plate: pd.Series) -> dict[str, float]:
    """Balanced accuracy of the batch from intensities, on left-out images and left-out plates."""
    # A left-out plate need not hold every batch.
    warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
    forest = RandomForestClassifier(200, random_state=0, n_jobs=1)
    by_image = StratifiedKFold(5, shuffle=True, random_state=0)
    by_plate = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    scoring = "balanced_accuracy"
    return {
        "batch told by intensities, new images": float(
            cross_val_score(forest, x, batch, cv=by_image, scoring=scoring).mean()
        ),
        "batch told by intensities, new plates": float(
            cross_val_score(forest, x, batch, cv=by_plate, groups=plate, scoring=scoring).mean()
        ),
        "chance": 1 / batch.nunique(),
    }


def balanced(batch: pd.Series) -> np.ndarray:
    """`PER_BATCH` rows of each batch, at random."""
    rng = numpy_generator(0, "realism")
    rows = [rng.permutation(np.flatnonzero(batch == name))[:PER_BATCH] for name in batch.unique()]
    return np.sort(np.concatenate(rows))


def measure(images: np.ndarray, batch: pd.Series, plate: pd.Series) -> dict[str, float]:
    x = features(images)
    some = balanced(batch)
    numbers = spreads(images.mean((2, 3), dtype=np.float64), batch, plate)
    return numbers | recognise(x[some], batch.iloc[some], plate.iloc[some])


def real(folder: Path) -> dict[str, float]:
    table = pd.read_csv(folder / "metadata.csv")
    taxol = np.flatnonzero(table["compound"] == "taxol")
    with np.load(folder / "crops.npz", allow_pickle=False) as file:
        images = file["X"][taxol].transpose(0, 3, 1, 2)
    table = table.iloc[taxol].reset_index(drop=True)
    return measure(images, table["week"], table["plate"])


MATCHED = EffectConfig(
    gain=Levels(batch=0.38, plate=0.64),
    background=Levels(batch=0.30, plate=0.30),
    gamma=Levels(batch=0.03),
    blur=Levels(batch=0.05, plate=0.05),
    noise=Levels(batch=0.05),
    vignetting=Levels(),
    bleed_through=Levels(batch=0.10),
    cell_size=Levels(batch=0.03),
)
"""Strengths chosen by hand so that the first three measures come near those of the real crops."""


def simulated(seed: int, strength: float = 1.0, matched: bool = False) -> dict[str, float]:
    plan = LayoutConfig(
        num_batches=10, num_plates=5, num_mechanisms=0, num_dmso=18, num_poscon=0, num_sites=1
    )
    config = SimulationConfig(seed=derive(seed, "realism"), strength=strength, layout=plan)
    # About one cell in a crop, as in the real ones.
    config = replace(config, size=68, pixel_size_um=0.65)
    if matched:
        cells = replace(config.cells, intensity_spread=0.6, well_spread=0.45)
        config = replace(config, effects=MATCHED, cells=cells)
    table = layout(config)
    images = render(config, table, effects(config), slice(None)).numpy()
    return measure(images, table["Metadata_Batch"], table["Metadata_Plate"])


def over_seeds(**options: float) -> dict[str, float]:
    return pd.DataFrame([simulated(seed, **options) for seed in range(SEEDS)]).mean().to_dict()


def main(folder: Path) -> None:
    start = time.perf_counter()
    columns = {"BBBC021, taxol": real(folder)}
    for strength in (0.0, 0.5, 1.0):
        columns[f"simulated, strength {strength:g}"] = over_seeds(strength=strength)
    columns["simulated, matched by hand"] = over_seeds(matched=True)
    table = pd.DataFrame(columns)
    print(table.round(2).to_string())
    values = {"per_batch": PER_BATCH, "simulated_seeds": SEEDS, "measures": table.to_dict()}
    keep("simulator_realism", values, {"all": [time.perf_counter() - start]})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else CROPS)
