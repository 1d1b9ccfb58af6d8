"""The rules of a protocol: what its folds hold out, and what its name must admit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evenfield.adapt.base import Adapter
from evenfield.config import SplitConfig, View
from evenfield.data.split import Split, Units, make_split
from evenfield.errors import InputError
from evenfield.records import ORACLE, TRANSDUCTIVE

Fold = tuple[str, ...]


def split_by_fold(coded: Units, config: SplitConfig, folds: tuple[Fold, ...]) -> dict[Fold, Split]:
    """The split of each fold: the named units, each unit in turn, or what a column tests.

    Raises:
        InputError: A fold names no unit, or names some although a column says who is judged; the
            column tests nothing.
    """
    if config.column is None:
        names = sorted(set(coded.holdout[np.flatnonzero(coded.label >= 0)]))
        folds = folds or tuple((str(name),) for name in names)
        return {fold: make_split(coded, fold_config(config, fold)) for fold in folds}
    if folds:
        raise InputError(
            f"the folds name units, but the column {config.column} says who is judged",
            fix="leave folds or split.column away",
        )
    split = make_split(coded, config)
    if not len(split.test):
        raise InputError(
            f"no labelled image is `test` in the column {config.column}",
            fix="name another column, or folds",
        )
    return {split.test_units: split}


def fold_config(config: SplitConfig, fold: Fold) -> SplitConfig:
    """The settings of one fold; with a column they say all by themselves."""
    return config if config.column is not None else replace(config, test=fold)


def reads_target(adapter: Adapter, view: View) -> bool:
    """Whether predictions rest on statistics of the new unit, beyond the image itself.

    The adapter learns from its unlabelled images or controls, or the view normalises by them. Under
    the rules of WILDS this is another track.
    """
    adapts = adapter.uses_perturbed or adapter.uses_controls
    return adapts or view.normalise in ("plate", "controls")


def marked(protocol: str, split: SplitConfig, *, transductive: bool = False) -> str:
    """A protocol's name with what readers must know.

    >>> marked("new-batch", SplitConfig(select_on="oracle"))
    'new-batch (oracle selection)'
    >>> marked("new-batch", SplitConfig(), transductive=True)
    'new-batch (transductive)'
    """
    name = protocol + (TRANSDUCTIVE if transductive else "")
    return name + (ORACLE if split.select_on == "oracle" else "")
