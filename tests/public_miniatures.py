"""The exact layouts of RxRx1, RxRx1-WILDS and Camelyon17-WILDS, in small, with random pixels."""

from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd

NEGATIVE = 1138
EXPERIMENTS = {  # how far the groups of treatments are turned through the plates
    "HUVEC-01": 0,
    "HUVEC-02": 3,
    "RPE-03": 0,
    "HUVEC-18": 1,  # as RPE-03, plates shifted by one
}


def png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(image)))


def rxrx1_table(experiments=EXPERIMENTS, per_group: int = 2) -> pd.DataFrame:
    """One row a site, as metadata.csv: four plates, on each one group and two controls."""
    rows = []
    for experiment, turn in experiments.items():
        for plate in range(4):
            group = (plate - turn) % 4
            sirnas = [*range(group * per_group, (group + 1) * per_group), 1108, NEGATIVE]
            for place, sirna in enumerate(sirnas):
                kind = {1108: "positive_control", NEGATIVE: "negative_control"}
                well = f"{'BC'[place % 2]}{2 + place // 2:02d}"
                rows += [
                    {
                        "site_id": f"{experiment}_{plate + 1}_{well}_{site}",
                        "well_id": f"{experiment}_{plate + 1}_{well}",
                        "cell_type": experiment.split("-")[0],
                        "dataset": "test" if experiment == "HUVEC-18" else "train",
                        "experiment": experiment,
                        "plate": plate + 1,
                        "well": well,
                        "site": site,
                        "well_type": kind.get(sirna, "treatment"),
                        "sirna": f"s{sirna}",
                        "sirna_id": sirna,
                    }
                    for site in (1, 2)
                ]
    return pd.DataFrame(rows)


def rxrx1_pixel(row: int, channel: int) -> int:
    """What the first pixel of an image holds: it tells which file was read."""
    return (6 * row + channel) % 251


def _write_sites(table: pd.DataFrame, folder, side: int) -> None:
    rng = np.random.default_rng(0)
    for row, site in enumerate(table.itertuples()):
        for channel in range(1, 7):
            image = rng.integers(0, 256, (side, side), dtype=np.uint8)
            image[0, 0] = rxrx1_pixel(row, channel)
            name = f"{site.well}_s{site.site}_w{channel}.png"
            png(folder(site) / f"Plate{site.plate}" / name, image)


def rxrx1_official(root: Path, *, side: int = 8, **choices) -> pd.DataFrame:
    """images/EXPERIMENT/PlateP/WELL_sS_wC.png and metadata.csv."""
    table = rxrx1_table(**choices)
    _write_sites(table, lambda site: root / "images" / site.experiment, side)
    table.to_csv(root / "metadata.csv", index=False)
    return table


def rxrx1_kaggle(root: Path, *, side: int = 8, **choices) -> pd.DataFrame:
    """train|test/EXPERIMENT/... and the four tables; no labels of the test treatments."""
    table = rxrx1_table(**choices)
    _write_sites(table, lambda site: root / site.dataset / site.experiment, side)
    wells = table[table["site"] == 1].copy()
    wells["id_code"] = wells["well_id"]
    is_control = wells["well_type"] != "treatment"
    wells["sirna"] = wells["sirna_id"]
    columns = ["id_code", "experiment", "plate", "well"]
    for dataset in ("train", "test"):
        part = wells[wells["dataset"] == dataset]
        shown = [*columns, "sirna"] if dataset == "train" else columns
        part[~is_control[part.index]][shown].to_csv(root / f"{dataset}.csv", index=False)
        part[is_control[part.index]][[*columns, "sirna", "well_type"]].to_csv(
            root / f"{dataset}_controls.csv", index=False
        )
    return table


def wilds_rxrx1(root: Path, *, side: int = 16, num_classes: int = 3) -> pd.DataFrame:
    """rxrx1_v1.0: six experiments of two cell types train, one selects, two judge."""
    root = root / "rxrx1_v1.0"
    parts = {
        "train": ["HEPG2-01", "HEPG2-02", "HEPG2-03", "U2OS-01", "U2OS-02", "U2OS-03"],
        "val": ["HEPG2-08"],
        "test": ["HEPG2-09", "U2OS-05"],
    }
    sirnas = [*range(num_classes - 1), NEGATIVE]
    rows = [
        {
            "dataset": dataset,
            "experiment": experiment,
            "plate": plate,
            "well": f"{'BCDE'[place % 4]}{2 + place // 4:02d}",
            "site": site,
            "cell_type": experiment.split("-")[0],
            "sirna_id": sirna,
        }
        for dataset, experiments in parts.items()
        for experiment in experiments
        for plate in (1, 2)
        for place, sirna in enumerate(sirnas)
        for site in (1, 2)
    ]
    # The official table is not sorted by split.
    table = pd.DataFrame(rows).sample(frac=1, random_state=0).reset_index(drop=True)
    rng = np.random.default_rng(0)
    for row in table.itertuples():
        name = f"{row.well}_s{row.site}.png"
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        png(root / "images" / row.experiment / f"Plate{row.plate}" / name, image)
    table.to_csv(root / "metadata.csv", index=False)
    (root / "RELEASE_v1.0.txt").write_text("")
    return table


def wilds_camelyon17(root: Path, *, side: int = 16, per_slide: int = 8) -> pd.DataFrame:
    """camelyon17_v1.0: two slides of each of five hospitals; RGBA patches, patients as text."""
    root = root / "camelyon17_v1.0"
    rng = np.random.default_rng(0)
    rows = []
    for slide in (0, 1, 10, 11, 20, 21, 30, 31, 40, 41):
        for number in range(per_slide):
            row = {
                "patient": f"{slide + 4:03d}",
                "node": slide % 4,
                "x_coord": 3328 + 32 * (number % 3),
                "y_coord": 21792 + 32 * (number // 3),
                "tumor": (number + slide // 10) % 2,
                "slide": slide,
                "center": slide // 10,
                "split": int(number >= per_slide - 2),
            }
            rows.append(row)
            folder = f"patient_{row['patient']}_node_{row['node']}"
            name = f"patch_{folder}_x_{row['x_coord']}_y_{row['y_coord']}.png"
            image = rng.integers(0, 256, (side, side, 4), dtype=np.uint8)
            image[..., 3] = 255
            png(root / "patches" / folder / name, image)
    table = pd.DataFrame(rows)
    table.to_csv(root / "metadata.csv")  # the official file has an index column first
    (root / "RELEASE_v1.0.txt").write_text("")
    return table
