"""What a corrector is: `fit(profiles).transform(profiles)`, arrays in, arrays out."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Bool

from evenfield.config import from_dict, to_dict
from evenfield.correct.base.archive import write_archive
from evenfield.data.roles import some
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.registry import Registry
from evenfield.types import Profiles

State = dict[str, np.ndarray]
"""What `fit` learned: named arrays of numbers, booleans or strings. Nothing else is saved."""

Unseen = Literal["same", "controls", "rows"]
"""What is looked at of a domain that `fit` never saw: nothing, its controls, or all its rows."""


class Corrector(ABC):
    """The contract of a corrector.

    It is fitted on some profiles and then maps any others, also of plates that come later. Each
    class's docstring says what happens at a domain (a plate, a batch) that `fit` never saw. A row
    of a domain that was seen is mapped by what was stored: the answer depends on no other row.
    Features are matched by name, never by position. Numbers keep their type (float32 or float64).

    It behaves as scikit-learn's transformers do (`get_params`, `set_params`, `clone`, pipelines);
    all that it learned is in `state`, so it pickles, and `save` writes it without pickle.

    Attributes:
        config: The settings.
        names: The features that it was fitted on; empty before `fit`.
        num_rows: How many rows it was fitted on.
        state: What it learned.
    """

    name: ClassVar[str]
    accepts_nan: ClassVar[bool] = False
    config: Any

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """The settings of a corrector."""

    def __init__(self, config: Any = None, **settings: Any) -> None:
        self.config = self._settled(config if config is not None else type(self).Config(), settings)
        self.names: tuple[str, ...] = ()
        self.num_rows = 0
        self.state: State = {}

    @property
    def unseen(self) -> Unseen:
        """What is looked at of a domain that `fit` never saw."""
        return "same"

    @abstractmethod
    def learn(self, profiles: Profiles) -> State:
        """The state, from profiles that are checked: at least one row and feature, finite."""

    @abstractmethod
    def map(self, profiles: Profiles) -> Profiles:
        """The corrected profiles, from profiles whose features are those of `fit`, in order."""

    def fit(self, profiles: Profiles, y: object = None) -> Self:
        """Learn from profiles; they are not changed.

        Raises:
            InputError: No row, no feature, a NaN, a column that is missing, or what the class says.
        """
        del y
        self.state = {}
        self.state = self.learn(checked(profiles, self.name, nan=self.accepts_nan))
        self.names, self.num_rows = profiles.names, len(profiles)
        return self

    def transform(self, profiles: Profiles) -> Profiles:
        """The same rows with corrected numbers; the given profiles are not changed.

        Raises:
            InputError: Not fitted, other features than in `fit`, a NaN, or an unseen domain that
                the class's rule refuses.
        """
        if not self.__sklearn_is_fitted__():
            raise InputError(f"{self.name} is not fitted", fix="call fit first, or load a file")
        return self.map(checked(self._aligned(profiles), self.name, nan=self.accepts_nan))

    def fit_transform(self, profiles: Profiles, y: object = None) -> Profiles:
        """`fit` and `transform` on the same profiles."""
        return self.fit(profiles, y).transform(profiles)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name, as scikit-learn asks for them."""
        del deep
        return {item.name: getattr(self.config, item.name) for item in fields(self.config)}

    def set_params(self, **settings: Any) -> Self:
        """Change settings; what was learned with the old ones is forgotten.

        Raises:
            InputError: A setting is unknown or has a value of another type.
        """
        self.config = self._settled(self.config, settings)
        self.state = {}
        return self

    def save(self, path: Path) -> None:
        """Write one `.npz` file (settings as JSON, arrays beside it), whole or not at all.

        Raises:
            InputError: Not fitted.
            StorageError: The disk is full or read-only.
        """
        write_archive(Path(path), {"kind": "corrector", "steps": [self.header()]}, [self.state])

    def header(self) -> dict[str, Any]:
        """What a saved file says about it, as JSON values: settings, features, rows fitted on.

        Raises:
            InputError: Not fitted.
        """
        if not self.__sklearn_is_fitted__():
            raise InputError(f"{self.name} is not fitted", fix="call fit before save")
        return {
            "corrector": self.name,
            "config": to_dict(self.config),
            "names": list(self.names),
            "num_rows": self.num_rows,
            "unseen": self.unseen,
        }

    @classmethod
    def restored(cls, header: dict[str, Any], state: State) -> Self:
        """The corrector of a `header` and a `state`."""
        corrector = cls(from_dict(cls.Config, header["config"]))
        corrector.names, corrector.num_rows = tuple(header["names"]), int(header["num_rows"])
        corrector.state = state
        return corrector

    def __sklearn_is_fitted__(self) -> bool:
        return bool(self.state)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags

        return Tags(estimator_type=None, target_tags=TargetTags(required=False))

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({told})"

    @staticmethod
    def _settled(config: Any, settings: dict[str, Any]) -> Any:
        known = [item.name for item in fields(config)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise InputError(
                f"the corrector has no setting {unknown[0]!r}",
                fix=f"use one of: {', '.join(known)}",
            )
        settled = replace(config, **settings)
        from_dict(type(settled), to_dict(settled))  # refuses a wrong type or word
        return settled

    def _aligned(self, profiles: Profiles) -> Profiles:
        if profiles.names == self.names:
            return profiles
        ours, theirs = set(self.names), set(profiles.names)
        lacking = [name for name in self.names if name not in theirs]
        foreign = [name for name in profiles.names if name not in ours]
        if lacking or foreign:
            raise InputError(
                f"{self.name} was fitted on {len(self.names)} features; the profiles lack "
                f"{len(lacking)} of them ({some(lacking, 4) or 'none'}) and have {len(foreign)} "
                f"others ({some(foreign, 4) or 'none'})",
                fix="give profiles with the features of `fit` (in any order), or fit anew",
            )
        place = {name: index for index, name in enumerate(profiles.names)}
        order = [place[name] for name in self.names]
        return profiles.with_features(profiles.features[:, order], self.names)


CORRECTORS: Registry[Corrector] = Registry("corrector", package="evenfield.correct")


def checked(profiles: Profiles, who: str, *, nan: bool = False) -> Profiles:
    """The profiles as float32 or float64, if they can be worked with.

    Raises:
        InputError: No row, no feature, features that repeat or do not fit the matrix, a value that
            is NaN or infinite.
    """
    x = np.asarray(profiles.features)
    if x.ndim != 2 or x.shape != (len(profiles), len(profiles.names)) or 0 in x.shape:
        raise InputError(
            f"{who}: a matrix {x.shape} meets {len(profiles)} rows of metadata and "
            f"{len(profiles.names)} names of features",
            fix="give at least one row and one feature, and a name for each feature",
        )
    if len(set(profiles.names)) < len(profiles.names):
        raise InputError(f"{who}: two features have the same name", fix="rename one of them")
    if x.dtype not in (np.float32, np.float64):
        if x.dtype.kind not in "iuf":
            raise InputError(
                f"{who}: features have the type {x.dtype}",
                fix="give numbers, as read_profiles does",
            )
        x = x.astype(np.float64 if x.dtype.itemsize > 2 else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        fine = nan or np.isfinite(x.sum(dtype=np.float64))  # one cheap pass; the search if needed
    if not fine and not np.isfinite(x).all():
        bad = ~np.isfinite(x)
        columns = [profiles.names[i] for i in np.flatnonzero(bad.any(0))]
        raise InputError(
            f"{who}: {int(bad.any(1).sum())} row(s) hold NaN or infinite values in "
            f"{len(columns)} feature(s): {some(columns, 4)}",
            fix="leave these rows out, or put `select-features` first: it drops such features",
        )
    return profiles if x is profiles.features else profiles.with_features(x)


def keep_features(profiles: Profiles, keep: Bool[np.ndarray, " d"]) -> Profiles:
    """The profiles with some of their features."""
    if keep.all():
        return profiles
    names = tuple(name for name, kept in zip(profiles.names, keep, strict=True) if kept)
    return profiles.with_features(profiles.features[:, keep], names)


def some_names(names: tuple[str, ...], which: Bool[np.ndarray, " d"]) -> str:
    """The first few names of those that are marked."""
    return some([names[i] for i in np.flatnonzero(which)], 4)


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse a setting outside of low to high.

    >>> check_range("ridge", -1.0, 0)
    Traceback (most recent call last):
    ...
    evenfield.errors.InputError: ridge is -1.0
      What to do: give a value from 0 to inf
    """
    if not low <= value <= high:
        raise InputError(f"{name} is {value}", fix=f"give a value from {low} to {high}")


def warn(who: str, text: str) -> None:
    """Announce a stated fallback."""
    warnings.warn(f"{who}: {text}", EvenfieldWarning, stacklevel=4)
