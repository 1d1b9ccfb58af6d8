"""A trained model on new plates: adapt, predict, judge, one plate at a time, no label needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from evenfield import __version__
from evenfield.adapt.base import Adapted
from evenfield.bench.evaluate import judge, predict_contexts
from evenfield.bench.official import official_scores, write_leaderboard
from evenfield.bench.rules import marked, reads_target
from evenfield.config import Regime, to_dict
from evenfield.data.dataset import Reader
from evenfield.data.sampler import ContextRows
from evenfield.data.split import contexts_for, make_split
from evenfield.data.store import Screen
from evenfield.errors import InputError
from evenfield.files import whole, write_json
from evenfield.metrics.wells import to_wells
from evenfield.profile.plates import (
    INDEX,
    choose,
    model_id,
    open_index,
    open_states,
    plates,
    reader_for,
    shown,
)
from evenfield.progress import track
from evenfield.records import Record, append, digest, file_sha256
from evenfield.train import checkpoint
from evenfield.train.calibrate import mean_features, shift_score
from evenfield.train.checkpoint import Model


def adapt_plates(
    model: Model, screen: Screen, out: Path, adapter: str, options: dict[str, Any]
) -> Path:
    """Write one adapted state a plate and an index; plates that are done are skipped.

    Raises:
        InputError: The screen does not fit the model, or `out` holds states of something else.
        StorageError: The disk is full.
    """
    reader = reader_for(model, screen)
    rule = choose(model, adapter, options)
    about = {
        "adapter": rule.name,
        "options": to_dict(rule.config),
        "screen": screen.fingerprint,
        "model": model_id(model),
    }
    index = open_index(out, about, by="adapter")
    for context in track(list(plates(screen, model, reader.coded)), f"adapt ({rule.name})"):
        if context.name in index["plates"]:
            continue
        adapted = rule.fit(model.method.predictor, reader.context(shown(context, rule)))
        name = f"{digest([context.name])}.pt"
        checkpoint.save(out / name, {"schema": checkpoint.SCHEMA, "state": adapted.state()})
        index["plates"][context.name] = {"file": name, "sha256": file_sha256(out / name)}
        write_json(out / INDEX, index)
    return out


def predict_plates(
    model: Model,
    screen: Screen,
    out: Path,
    adapter: str,
    options: dict[str, Any],
    *,
    adapted: Path | None,
    level: str,
) -> pd.DataFrame:
    """Predict plate by plate and write one Parquet file, whole or not at all.

    Raises:
        InputError: The output exists; the screen does not fit; a plate has no adapted state.
        StorageError: The disk is full.
    """
    if out.exists():
        raise InputError(f"the output {out} exists", fix="choose another file or delete this one")
    reader = reader_for(model, screen)
    states = None if adapted is None else open_states(adapted, model)
    rule = choose(model, adapter, options) if states is None else states.rule
    tables = []
    todo = list(plates(screen, model, reader.coded))
    if states is not None:
        todo = states.of_these(todo)
    for context in track(todo, f"predict ({rule.name})"):
        if states is not None:
            fitted = rule.restore(model.method.predictor, states.state(context.name))
        else:
            fitted = rule.fit(model.method.predictor, reader.context(shown(context, rule)))
        tables.append(_plate_table(model, reader, context, fitted, level))
    if not tables:
        raise InputError(
            f"{screen.folder} has no perturbed image to predict",
            fix="check Metadata_ControlType: only trt and poscon rows are predicted",
        )
    table = pd.concat(tables, ignore_index=True)
    with whole(out) as file:
        table.to_parquet(file, index=False)
    return table


def predict_leaderboard(
    model: Model, screen: Screen, out: Path, adapter: str, options: dict[str, Any]
) -> pd.DataFrame:
    """Predictions of every split but `train` as WILDS' leaderboard takes them, one file each.

    Raises:
        InputError: The screen does not fit, or is of no WILDS data set.
        StorageError: The disk is full.
    """
    rule = choose(model, adapter, options)
    return write_leaderboard(model, reader_for(model, screen), out, rule)


def _plate_table(
    model: Model, reader: Reader, context: ContextRows, fitted: Adapted, level: str
) -> pd.DataFrame:
    rows = context.perturbed
    log_prob = torch.cat(
        [
            fitted.predict(reader.images(rows[start : start + 256])).float().cpu()
            for start in range(0, len(rows), 256)
        ]
    ).numpy()
    if level == "well":
        _, first, well = np.unique(reader.coded.well[rows], return_index=True, return_inverse=True)
        log_prob, rows = to_wells(log_prob, well.ravel())[0], rows[first]
    table = reader.screen.manifest.loc[
        rows, [name for name in reader.screen.manifest if str(name).startswith("Metadata_")]
    ].reset_index(drop=True)
    if level == "well":
        table = table.drop(columns=["Metadata_Site", "Metadata_Object"])
    probability = np.exp(log_prob)
    table["Prediction_Label"] = np.array(model.classes)[log_prob.argmax(1)]
    for code, name in enumerate(model.classes):
        table[f"Prediction_Probability_{name}"] = probability[:, code].astype(np.float32)
    entropy = -(probability * log_prob).sum(1) / np.log(len(model.classes))
    table["Prediction_Uncertainty"] = np.clip(entropy, 0, 1).astype(np.float32)
    score = None
    if len(context.controls):
        mean = mean_features(model.method.predictor, reader, context.controls)
        score = shift_score(mean, model.reference)
    table["Prediction_PlateShift"] = np.float32(np.nan if score is None else score)
    return table


def evaluate_run(model: Model, screen: Screen, out: Path, adapters: tuple[str, ...]) -> Path:
    """Judge a model and write records; training images are never judged.

    On a screen of a WILDS reader the rules of WILDS hold: what reads the new plates is marked.

    Raises:
        InputError: The screen does not fit the model, or nothing is left to judge.
    """
    reader = reader_for(model, screen)
    coded = reader.coded
    if screen.fingerprint == model.screen:
        split = make_split(coded, model.config.split)
        protocol = "new-source" if model.roles.holdout == "Metadata_Source" else "new-batch"
        parts = {"in-domain": split.in_domain, protocol: split.test}
        test_units = split.test_units
    else:
        test_units = model.config.split.test
        parts = {"new-screen": np.flatnonzero(coded.label >= 0)}
    if not any(len(rows) for rows in parts.values()):
        raise InputError(
            f"{screen.folder} has no labelled image that the model has not been trained on",
            fix="give a screen whose labels are among: " + ", ".join(model.classes),
        )
    label, config = model.config.method, model.config
    of_wilds = "dataset" in screen.info["provenance"]
    for plain, rows in parts.items():
        if len(rows) == 0:
            continue
        contexts = contexts_for(coded, rows, Regime(), seed=0)
        for name in adapters:
            rule = choose(model, name, {})
            transductive = of_wilds and reads_target(rule, config.view)
            protocol = marked(plain, config.split, transductive=transductive)
            predictions = predict_contexts(model.method.predictor, reader, contexts, rule)
            scores = [*judge(predictions, coded), *official_scores(predictions, coded, screen)]
            cell = digest([model_id(model), screen.fingerprint, protocol, rule.name])
            append(
                out,
                [
                    Record(
                        kind="value",
                        protocol=protocol,
                        method=label,
                        adapter=rule.name,
                        metric=score.metric,
                        unit=score.unit,
                        unit_role=score.unit_role,
                        level=score.level,
                        value=score.value,
                        num=score.num,
                        seed=model.config.train.seed,
                        fold="+".join(test_units),
                        screen=screen.fingerprint,
                        cell=cell,
                        versions={"evenfield": __version__, "torch": torch.__version__},
                    )
                    for score in scores
                ],
            )
    return out
