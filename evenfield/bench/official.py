"""What WILDS asks for: its metric, and predictions in the form of its leaderboard."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from evenfield.adapt.base import Adapter
from evenfield.bench.evaluate import Predictions, Score, predict_contexts
from evenfield.bench.rules import reads_target
from evenfield.data.dataset import Reader
from evenfield.data.sampler import ContextRows
from evenfield.data.split import Units
from evenfield.data.store import Screen
from evenfield.data.wilds import SPLIT
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.files import whole
from evenfield.metrics.groups import group_accuracy
from evenfield.train.checkpoint import Model


def official_scores(predictions: Predictions, coded: Units, screen: Screen) -> list[Score]:
    """`acc_avg` over all images and in each group, and `acc_wg`; [] for a screen without groups.

    A reader names the column of the groups where its benchmark has some: cell types in
    RxRx1-WILDS, slides in Camelyon17-WILDS.
    """
    column = screen.info["provenance"].get("groups")
    if column is None:
        return []
    label = coded.label[predictions.row]
    group, names = pd.factorize(screen.manifest[column].iloc[predictions.row], sort=True)
    found = group_accuracy(predictions.log_prob.argmax(1), label, group, len(names))

    def score(metric: str, value: float, num: int, unit: str = "all", role: str = "all") -> Score:
        return Score(
            metric=metric, unit=unit, unit_role=role, level="image", value=float(value), num=num
        )

    return [
        score("acc_avg", found.average, len(label)),
        score("acc_wg", found.worst, len(label)),
        *(
            score("acc_avg", value, int(num), str(name), "group")
            for name, value, num in zip(names, found.by_group, found.count, strict=True)
        ),
    ]


def write_leaderboard(model: Model, reader: Reader, out: Path, rule: Adapter) -> pd.DataFrame:
    """One file a split (all but `train`), one class number a line, in the order of metadata.csv.

    Args:
        model: Trained on a screen of a WILDS reader.
        reader: Of the screen that is predicted.
        out: Folder of the files; those that are there are replaced.
        rule: The adapter; one that reads the new plates is another track, which is said.

    Returns:
        Split, file and number of lines.

    Raises:
        InputError: The screen is of no WILDS reader, or an image has no class number.
        StorageError: The disk is full.
    """
    screen, coded = reader.screen, reader.coded
    dataset = screen.info["provenance"].get("dataset")
    if dataset is None or SPLIT not in screen.manifest:
        raise InputError(
            f"{screen.folder} is no screen of a WILDS data set",
            fix="ingest it with wilds-rxrx1 or wilds-camelyon17",
        )
    if coded.is_control.any():
        raise InputError(
            f"{int(coded.is_control.sum())} images are negative controls, which are not predicted",
            fix="ingest with negative_is_class, as the official metric counts them",
        )
    numbers = _class_numbers(model)
    if reads_target(rule, model.config.view):
        warnings.warn(
            f"{rule.name} on {model.config.view.normalise}-normalised images reads the new plates: "
            "under the rules of WILDS these predictions are non-standard",
            EvenfieldWarning,
            stacklevel=3,
        )
    split = screen.manifest[SPLIT].to_numpy(dtype=str)
    lines = []
    for name in sorted(set(split) - {"train"}):
        rows = np.flatnonzero(split == name)
        contexts = [
            ContextRows(name=unit, perturbed=part, controls=part[:0])
            for unit, part in coded.by_context(rows).items()
        ]
        predictions = predict_contexts(model.method.predictor, reader, contexts, rule)
        order = np.argsort(predictions.row)
        predicted = numbers[predictions.log_prob.argmax(1)[order]]
        path = out / f"{dataset}_split:{name}_seed:{model.config.train.seed}_epoch:best_pred.csv"
        with whole(path) as file:
            file.write("".join(f"{number}\n" for number in predicted).encode())
        lines.append({"split": name, "file": str(path), "num": len(rows)})
    return pd.DataFrame(lines)


def _class_numbers(model: Model) -> np.ndarray:
    """The official number of each class code."""
    named = [name for name in model.classes if not name.isdigit()]
    if named:
        raise InputError(
            f"the class {named[0]!r} has no official number", fix="train on a WILDS screen"
        )
    return np.array([int(name) for name in model.classes])
