"""The files beside the records: what the report draws. Each is written whole, with its checksum."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from evenfield.adapt.base import Adapter
from evenfield.bench.composite import composite
from evenfield.bench.evaluate import Images, Predictions
from evenfield.bench.mixes import mixes_of
from evenfield.data.audit import audit_screen
from evenfield.data.dataset import Reader
from evenfield.data.manifest import Roles
from evenfield.data.sampler import ContextRows
from evenfield.data.split import Split, Units
from evenfield.data.store import Screen
from evenfield.data.transforms import read
from evenfield.files import whole
from evenfield.nn.reconstruction import Reconstructing
from evenfield.records import Record, append, digest, file_sha256
from evenfield.seeds import derive, numpy_generator
from evenfield.train.calibrate import mean_features, shift_score
from evenfield.train.checkpoint import Model

WHERE = ["Metadata_Source", "Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site"]
NUM_EMBEDDED = 600
AUDITED_BYTES = 1 << 31
"""Up to this size of the pixels the findings of a grid are those of the images, too; for larger
screens `evenfield audit` tells them."""


class Artifacts:
    """Writes artifacts of one results folder.

    Args:
        out: The results folder.
        screen: The screen that is judged.
        command: How to repeat the run.
        description: One sentence for the report.
    """

    def __init__(self, out: Path, screen: Screen, *, command: str, description: str) -> None:
        self.out, self._screen = out, screen
        self._command, self._description = command, description

    def _write(self, base: Record, what: str, suffix: str, data: bytes, *key: object) -> Record:
        name = f"{what}-{digest([str(part) for part in key])}{suffix}"
        path = self.out / "artifacts" / name
        with whole(path) as file:
            file.write(data)
        return replace(
            base,
            kind="artifact",
            metric=what,
            path=f"artifacts/{name}",
            sha256=file_sha256(path),
        )

    def screen_and_findings(self, coded: Units, roles: Roles) -> None:
        """What was judged, and what the door found (rewritten by every run; counted once)."""
        screen = self._screen
        manifest = screen.manifest
        base = Record(
            kind="artifact",
            metric="",
            screen=screen.fingerprint,
            cell="screen",
            extra={"command": self._command} if self._command else {},
        )
        simulated = screen.info.get("provenance", {}).get("source") == "simulated"
        about = {
            "name": screen.folder.name,
            "num_images": screen.num_images,
            "num_plates": len(coded.contexts),
            "num_batches": manifest["Metadata_Batch"].nunique(),
            "num_sources": manifest["Metadata_Source"].nunique(),
            "channels": list(screen.channels),
            "height": screen.shape[1],
            "width": screen.shape[2],
            "dtype": str(screen.dtype),
            "classes": list(coded.classes),
            "simulated": simulated,
            "description": self._description,
        }
        findings = [
            {
                "severity": item.severity,
                "check": item.check,
                "message": item.message,
                "breaks": item.breaks,
                "fix": item.fix,
                "num_rows": len(item.rows),
                "units": list(item.units),
            }
            for item in audit_screen(screen, roles, images=self._reads_images())
        ]
        files = [
            self._write(base, "screen", ".json", _json(about), screen.fingerprint),
            self._write(base, "findings", ".json", _json(findings), screen.fingerprint),
        ]
        append(self.out, [replace(item, extra={**item.extra, "cell_size": 2}) for item in files])

    def _reads_images(self) -> bool:
        """Whether the audit reads the pixels: not of a large screen, each time a grid goes on."""
        num = self._screen.num_images * int(np.prod(self._screen.shape))
        return num * self._screen.dtype.itemsize <= AUDITED_BYTES

    def predictions(
        self, base: Record, predictions: Predictions, coded: Units, screen: Screen
    ) -> Record:
        """Every scored image with its label, its prediction and its confidence."""
        table = screen.manifest.loc[predictions.row, WHERE].reset_index(drop=True)
        names = np.array(coded.classes)
        table["label"] = names[coded.label[predictions.row]]
        table["predicted"] = names[predictions.log_prob.argmax(1)]
        table["confidence"] = np.exp(predictions.log_prob.max(1)).astype(np.float32)
        return self._write(base, "predictions", ".parquet", _parquet(table), base.cell)

    def pictures(
        self,
        base: Record,
        model: Model,
        reader: Reader,
        coded: Units,
        split: Split,
        contexts: list[ContextRows],
        adapter: Adapter,
    ) -> list[Record]:
        """The embedding map; for the unadapted model also example fields and the control drift."""
        files = [self._embedding(base, model, reader, coded, split, contexts, adapter)]
        if adapter.name == "source":
            files.append(self._control_drift(base, model, reader, coded, split))
            files.append(self._example_fields(base, reader, coded, split))
            if isinstance(model.method.predictor, Reconstructing):
                files.append(self._mixes(base, model, reader, split))
        return files

    def _embedding(
        self,
        base: Record,
        model: Model,
        reader: Reader,
        coded: Units,
        split: Split,
        contexts: list[ContextRows],
        adapter: Adapter,
    ) -> Record:
        """Features of held-out wells of the training plates and of the test plates, in the plane.

        t-SNE of the first principal components; the training side is adapted in the same way.
        """
        train = [
            ContextRows(name=name, perturbed=rows, controls=coded.controls_of(name))
            for name, rows in coded.by_context(split.in_domain).items()
        ]
        rows, features = [], []
        images = Images(reader)
        rng = numpy_generator(0, "embedding")
        total = sum(len(item.perturbed) for item in [*train, *contexts])
        for item in [*train, *contexts]:
            images.load(np.concatenate([item.perturbed, item.controls]))
            context = images.context(item)
            adapted = adapter.fit(model.method.predictor, context)
            share = min(1.0, NUM_EMBEDDED / total)
            keep = rng.permutation(len(item.perturbed))[
                : max(1, round(share * len(item.perturbed)))
            ]
            with torch.inference_mode():
                kept = adapted.model.features(context.perturbed[torch.from_numpy(keep)])
            rows.append(item.perturbed[keep])
            features.append(kept.float().cpu().numpy())
        row, matrix = np.concatenate(rows), np.concatenate(features)
        table = pd.DataFrame(_plane(matrix), columns=["x", "y"])
        manifest = self._screen.manifest
        table["batch"] = manifest.loc[row, "Metadata_Batch"].astype(str).to_numpy()
        table["plate"] = manifest.loc[row, "Metadata_Plate"].astype(str).to_numpy()
        table["label"] = np.array(coded.classes)[coded.label[row]]
        table["control"] = False
        table["split"] = np.where(np.isin(row, split.in_domain), "train", "test")
        return self._write(base, "embedding", ".parquet", _parquet(table), base.cell)

    def _control_drift(
        self, base: Record, model: Model, reader: Reader, coded: Units, split: Split
    ) -> Record:
        """How far each plate's controls lie from those of the training plates."""
        found = []
        test = set(coded.by_context(split.test))
        for name in coded.contexts:
            controls = coded.controls_of(name)
            score = None
            if len(controls):
                mean = mean_features(model.method.predictor, reader, controls)
                score = shift_score(mean, model.reference)
            if score is not None:
                batch = str(self._screen.manifest.loc[controls[0], "Metadata_Batch"])
                side = "test" if name in test else "train"
                found.append({"plate": name, "batch": batch, "split": side, "shift": score})
        columns = ["plate", "batch", "split", "shift"]
        table = pd.DataFrame(found, columns=columns)
        return self._write(base, "control-drift", ".parquet", _parquet(table), base.cell)

    def _mixes(self, base: Record, model: Model, reader: Reader, split: Split) -> Record:
        """Images that have not trained the model, each under the others' attributes."""
        tested = np.array(reader.coded.domains)[reader.coded.domain[split.test]]
        rows = np.union1d(split.in_domain, split.test)
        found = mixes_of(model.method.predictor, reader, rows, held_out=sorted(set(tested)))
        return self._write(base, "mixes", ".npz", found.npz(), base.cell)

    def _example_fields(self, base: Record, reader: Reader, coded: Units, split: Split) -> Record:
        """A control field of up to six batches, raw and as the network sees it."""
        manifest = self._screen.manifest
        batches = sorted(set(manifest["Metadata_Batch"].astype(str)))
        tested = set(manifest.loc[split.test, "Metadata_Batch"].astype(str))
        chosen = [name for name in batches if name not in tested][:3] + sorted(tested)[:3]
        rows = []
        for batch in chosen:
            of_batch = (manifest["Metadata_Batch"].astype(str) == batch).to_numpy()
            some = np.flatnonzero(of_batch & coded.is_control)
            some = some if len(some) else np.flatnonzero(of_batch)
            rows.append(int(some[derive(0, batch) % len(some)]))
        raw = read(self._screen.pixels, np.array(rows), reader.view, seed=0, train=False)[:, :3]
        raw = raw.astype(np.float32)
        seen = reader.images(np.array(rows)).float().cpu().numpy()[:, :3]
        pictures = [*composite(raw, 0.0, float(np.percentile(raw, 99.7)))]
        unit = reader.view.normalise == "unit"
        span = (0.0, float(np.percentile(seen, 99.7))) if unit else (-1.5, 3.5)
        pictures += [*composite(seen, *span)]
        names = [f"{name}{' (held out)' if name in tested else ''}" for name in chosen]
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            images=np.stack(pictures),
            title=np.array(names * 2),
            group=np.array(["raw"] * len(rows) + ["normalised"] * len(rows)),
            batch=np.array(chosen * 2),
        )
        return self._write(base, "example-fields", ".npz", buffer.getvalue(), base.cell)


def _plane(features: np.ndarray) -> np.ndarray:
    """(n, d) to (n, 2) by t-SNE of the first 30 principal components, with a fixed seed."""
    num = min(30, *features.shape)
    components = PCA(num, svd_solver="full").fit_transform(features)
    if len(features) < 10:
        return np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - num))))
    plane = TSNE(
        2, perplexity=min(30.0, len(features) / 4), init="pca", random_state=0, max_iter=500
    ).fit_transform(components)
    return np.round(plane, 3)


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()
