"""A results folder as a benchmark would write it, with known numbers."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd

from evenfield.records import Record, append, file_sha256
from evenfield.seeds import numpy_generator

CLASSES = [
    "Actin disruptors",
    "Aurora kinase inhibitors",
    "DNA damage",
    "Eg5 inhibitors",
    "Microtubule destabilisers",
    "Protein degradation",
    "Protein synthesis",
    "Statins",
]
EVIL = "P4-2<script>document.documentElement.dataset.error='evil'</script>"
SKILL = {  # (method, adapter): in-domain, new batch
    ("erm", "source"): (0.97, 0.52),
    ("erm", "controls"): (0.96, 0.81),
    ("erm", "union"): (0.96, 0.84),
    ("arm-bn", "batch"): (0.97, 0.88),
    ("cs-arm-bn", "union"): (0.975, 0.945),
    ("cs-arm-bn", "context"): (0.972, 0.94),
    ("cs-arm-bn[controls]", "controls"): (0.97, 0.93),
}
HARD = {"B4": -0.05, "B5": 0.03, "B6": -0.11, "B7": 0.06}


def base(**given):
    return Record(
        **{
            "kind": "value",
            "metric": "",
            "screen": "5f1d9ab03c7e",
            "versions": {"evenfield": "0.1.0", "torch": "2.13.0"},
            **given,
        }
    )


def write_artifact(folder: Path, name: str, data: bytes, **given) -> Record:
    path = folder / "artifacts" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return base(kind="artifact", path=f"artifacts/{name}", sha256=file_sha256(path), **given)


def parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def values(seeds=(0, 1, 2), batches=tuple(HARD), skill=SKILL, levels=("image", "well")):
    rng = numpy_generator(0, "values")
    for (method, adapter), (home, new) in skill.items():
        for seed in seeds:
            shared = {"method": method, "adapter": adapter, "seed": seed, "config": f"{seed:x}c4d"}
            for protocol, units, centre in (
                ("in-domain", ("B1", "B2", "B3"), home),
                ("new-batch", batches, new),
            ):
                for unit in units:
                    spread = HARD.get(unit, 0.0) * (1 - centre) * 2
                    right = float(np.clip(centre + spread + rng.normal() * 0.006, 0, 1))
                    numbers = {
                        "accuracy": right,
                        "balanced_accuracy": right - 0.004,
                        "macro_f1": right - 0.006,
                        "ece": (1 - right) * 0.6,
                        "nll": (1 - right) * 2.4,
                    }
                    for level in levels:
                        for metric, value in numbers.items():
                            yield base(
                                metric=metric,
                                protocol=protocol,
                                unit=unit,
                                unit_role="domain",
                                level=level,
                                value=value,
                                num=480 if level == "image" else 240,
                                fold="+".join(batches),
                                **shared,
                            )


def regimes():
    skill = {
        "source": lambda a, n, c: 0.52,
        "batch": lambda a, n, c: 0.86 * (n >= 8) * (1 - 0.5 * (a is not None)) + 0.2 * (n < 8),
        "controls": lambda a, n, c: 0.80 if c == 64 else 0.71,
        "context": lambda a, n, c: 0.9 if n >= 64 and a is None else 0.83 if c == 64 else 0.74,
    }
    for method in ("erm", "cs-arm-bn"):
        for adapter, rule in skill.items():
            for alpha in (None, 0.1, 0.01):
                for n in (1, 8, 64):
                    for c in (8, 64):
                        for place, unit in enumerate(HARD):
                            value = rule(alpha, n, c) + 0.01 * place + 0.04 * (method != "erm")
                            yield base(
                                metric="accuracy",
                                protocol="new-batch",
                                method=method,
                                adapter=adapter,
                                unit=unit,
                                unit_role="domain",
                                value=value,
                                num=500,
                                alpha=alpha,
                                num_images=n,
                                num_controls=c,
                            )


def predictions(new: float, seed: int) -> pd.DataFrame:
    rng = numpy_generator(seed, "predictions")
    rows = []
    for batch in HARD:
        for plate in (f"P{batch[1:]}-1", EVIL if batch == "B4" else f"P{batch[1:]}-2"):
            for row in range(2, 14):
                for column in range(2, 22):
                    if (row + column) % 5 == 0:
                        continue
                    true = (row * 3 + column) % len(CLASSES)
                    edge = 0.15 * (column < 5)
                    right = rng.random() < new + HARD[batch] * (1 - new) * 2 - edge * (1 - new) * 2
                    wrong = (true + 1 + int(rng.exponential(0.9))) % len(CLASSES)
                    rows.append(
                        {
                            "Metadata_Source": "S1",
                            "Metadata_Batch": batch,
                            "Metadata_Plate": plate,
                            "Metadata_Well": f"{chr(65 + row)}{column + 1:02d}",
                            "Metadata_Site": "1",
                            "label": CLASSES[true],
                            "predicted": CLASSES[true if right else wrong],
                            "confidence": float(rng.uniform(0.3, 1)),
                        }
                    )
    return pd.DataFrame(rows)


def embedding(mixed: float, seed: int) -> pd.DataFrame:
    rng = numpy_generator(seed, "embedding")
    num = 900
    batch = rng.integers(1, 8, num)
    label = rng.integers(len(CLASSES), size=num)
    by_batch = np.stack([np.cos(batch * 0.9), np.sin(batch * 0.9)], 1) * 5
    by_label = np.stack([np.cos(label * 0.78), np.sin(label * 0.78)], 1) * 5
    xy = (1 - mixed) * by_batch + mixed * by_label + rng.normal(size=(num, 2)) * 0.9
    return pd.DataFrame(
        {
            "x": xy[:, 0],
            "y": xy[:, 1],
            "batch": [f"B{b}" for b in batch],
            "plate": [f"P{b}-{s}" for b, s in zip(batch, rng.integers(1, 3, num), strict=True)],
            "label": [CLASSES[i] for i in label],
            "control": False,
            "split": np.where(batch > 3, "test", "train"),
        }
    )


def fields() -> bytes:
    rng = numpy_generator(0, "fields")
    grid = np.stack(np.meshgrid(np.arange(96), np.arange(96), indexing="ij"), -1)
    images, titles, groups, batches = [], [], [], []
    for group in ("raw", "normalised"):
        for place, batch in enumerate(("B1", "B2", "B3", "B4", "B5", "B6")):
            gain = 1.0 if group == "normalised" else 0.45 + 0.25 * (place % 4)
            image = np.full((96, 96, 3), 8 + 10 * (place % 3) * (group == "raw"), float)
            for centre in rng.uniform(0, 96, (14, 2)):
                distance = np.linalg.norm(grid - centre, axis=-1)
                image[..., 2] += 190 * gain * np.exp(-((distance / 5) ** 4))
                image[..., 1] += 90 * gain * np.exp(-((distance / 10) ** 2))
                image[..., 0] += 60 * gain * np.exp(-((distance / 12) ** 2))
            images.append(np.clip(image + rng.normal(size=image.shape) * 5, 0, 255))
            titles.append(batch + (" (held out)" if place > 2 else ""))
            groups.append(group)
            batches.append(batch)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=np.array(images, dtype=np.uint8),
        title=np.array(titles),
        group=np.array(groups),
        batch=np.array(batches),
    )
    return buffer.getvalue()


def drift() -> pd.DataFrame:
    rng = numpy_generator(0, "drift")
    rows = []
    for batch in range(1, 8):
        for plate in range(1, 4):
            shift = rng.uniform(0.6, 1.4) if batch <= 3 else rng.uniform(2, 7)
            side = "train" if batch <= 3 else "test"
            name = f"P{batch}-{plate}"
            rows.append({"plate": name, "batch": f"B{batch}", "split": side, "shift": shift})
    return pd.DataFrame(rows)


FINDINGS = [
    {
        "severity": "warning",
        "check": "confounding",
        "message": "the label Statins lives in one batch only",
        "breaks": "the model can answer it from the batch alone",
        "fix": "drop the label or spread it over batches",
        "num_rows": 240,
        "units": ["B2"],
    },
    {
        "severity": "warning",
        "check": "controls",
        "message": "plate P6-2 has 2 negative controls",
        "breaks": "its adaptation to controls falls back",
        "fix": "use the adapter union or prior there",
        "num_rows": 2,
        "units": ["P6-2"],
    },
]
SCREEN = {
    "name": "demo",
    "num_images": 4480,
    "num_plates": 14,
    "num_batches": 7,
    "num_sources": 1,
    "channels": ["DNA", "ER", "RNA", "AGP", "Mito"],
    "height": 64,
    "width": 64,
    "dtype": "uint8",
    "classes": CLASSES,
    "simulated": True,
    "description": "Cell Painting fields with seven batches of known gain, blur and background.",
}


def write_results(folder: Path, *, with_regimes: bool = True) -> Path:
    """The whole folder: values, regimes and every kind of artifact."""
    append(folder, values())
    if with_regimes:
        append(folder, regimes())
    files = []
    for place, ((method, adapter), (_, new)) in enumerate(SKILL.items()):
        given = {"method": method, "adapter": adapter, "protocol": "new-batch"}
        data = parquet(predictions(new, place))
        files.append(
            write_artifact(
                folder, f"predictions-{place}.parquet", data, metric="predictions", **given
            )
        )
        data = parquet(embedding(0.15 if method == "erm" else 0.92, place))
        files.append(
            write_artifact(folder, f"embedding-{place}.parquet", data, metric="embedding", **given)
        )
    about = {"extra": {"command": "evenfield demo"}}
    erm = {"method": "erm", "adapter": "source", "protocol": "new-batch"}
    files += [
        write_artifact(folder, "fields.npz", fields(), metric="example-fields", **erm),
        write_artifact(folder, "drift.parquet", parquet(drift()), metric="control-drift", **erm),
        write_artifact(
            folder, "findings.json", json.dumps(FINDINGS).encode(), metric="findings", **about
        ),
        write_artifact(
            folder, "screen.json", json.dumps(SCREEN).encode(), metric="screen", **about
        ),
    ]
    append(folder, files)
    return folder
