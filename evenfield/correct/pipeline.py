"""Correctors in a row, fitted, saved and applied as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from evenfield.config import from_dict
from evenfield.correct.base import CORRECTORS, Corrector, Unseen
from evenfield.correct.base.archive import read_archive, write_archive
from evenfield.errors import InputError
from evenfield.types import Profiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One corrector of a pipeline.

    Attributes:
        corrector: A name of `CORRECTORS`.
        options: Its own settings; absent ones take its defaults.
    """

    corrector: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """Which correctors follow each other.

    Attributes:
        steps: The correctors, in order.
    """

    steps: tuple[Step, ...] = ()


class Pipeline:
    """Correctors in a row: each is fitted on what the one before made of the profiles.

    A domain never seen is treated by each step's own rule.

    Attributes:
        steps: The correctors.
    """

    def __init__(self, steps: Sequence[Corrector]) -> None:
        self.steps = tuple(steps)
        if not self.steps:
            raise InputError("a pipeline has no step", fix="give at least one corrector")

    @classmethod
    def from_config(cls, config: PipelineConfig) -> Self:
        """The unfitted correctors of a configuration.

        Raises:
            InputError: No step, an unknown corrector or setting, a value of another type.
        """
        return cls([_made(step.corrector, step.options) for step in config.steps])

    @property
    def unseen(self) -> Unseen:
        """The most that any step looks at of a domain that `fit` never saw."""
        found = {step.unseen for step in self.steps}
        return "rows" if "rows" in found else "controls" if "controls" in found else "same"

    def fit(self, profiles: Profiles, y: object = None) -> Self:
        """Fit each step on the output of the one before."""
        self.fit_transform(profiles, y)
        return self

    def transform(self, profiles: Profiles) -> Profiles:
        """Each step's `transform`, in order."""
        for step in self.steps:
            profiles = step.transform(profiles)
        return profiles

    def fit_transform(self, profiles: Profiles, y: object = None) -> Profiles:
        """Fit and transform step by step."""
        for step in self.steps:
            profiles = step.fit_transform(profiles, y)
        return profiles

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The steps, and with `deep` each step's settings as `0__setting`."""
        told: dict[str, Any] = {"steps": self.steps}
        if deep:
            for number, step in enumerate(self.steps):
                told |= {f"{number}__{key}": value for key, value in step.get_params().items()}
        return told

    def set_params(self, **settings: Any) -> Self:
        """Change the steps, or settings of steps as `0__setting`.

        Raises:
            InputError: There is no such step or setting.
        """
        if "steps" in settings:
            self.steps = tuple(settings.pop("steps"))
        for key, value in settings.items():
            number, _, name = key.partition("__")
            if not (name and number.isdigit() and int(number) < len(self.steps)):
                raise InputError(
                    f"a pipeline of {len(self.steps)} steps has no setting {key!r}",
                    fix="write 0__setting for a setting of the first step",
                )
            self.steps[int(number)].set_params(**{name: value})
        return self

    def save(self, path: Path) -> None:
        """Write one `.npz` file with every step, whole or not at all.

        Raises:
            InputError: A step is not fitted.
            StorageError: The disk is full or read-only.
        """
        headers = [step.header() for step in self.steps]
        states = [step.state for step in self.steps]
        write_archive(Path(path), {"kind": "pipeline", "steps": headers}, states)

    def header(self) -> list[dict[str, Any]]:
        """What a saved file says about each step: settings, features, rows fitted on."""
        return [step.header() for step in self.steps]

    def __sklearn_is_fitted__(self) -> bool:
        return all(step.__sklearn_is_fitted__() for step in self.steps)

    def __sklearn_tags__(self) -> Any:
        return self.steps[0].__sklearn_tags__()

    def __repr__(self) -> str:
        return f"Pipeline({list(self.steps)!r})"


def _made(name: str, options: dict[str, Any]) -> Corrector:
    cls = CORRECTORS[name]
    return cls(from_dict(cls.Config, options, where=f"{name}."))


def fit_pipeline(profiles: Profiles, config: PipelineConfig) -> Pipeline:
    """A fitted pipeline.

    Raises:
        InputError: The configuration or the profiles do not do, see `Pipeline` and each corrector.
    """
    return Pipeline.from_config(config).fit(profiles)


def save(correction: Pipeline | Corrector, path: Path) -> None:
    """Write a fitted pipeline or corrector as one `.npz` file, without pickle."""
    correction.save(path)


def load(path: Path) -> Pipeline | Corrector:
    """Read what `save` wrote.

    Raises:
        InputError: There is no such file, it is no saved correction, or it names a corrector or a
            setting that this version does not have.
    """
    header, states = read_archive(Path(path))
    steps = [
        CORRECTORS[step["corrector"]].restored(step, state)
        for step, state in zip(header["steps"], states, strict=True)
    ]
    return steps[0] if header["kind"] == "corrector" else Pipeline(steps)


def apply(correction: Pipeline | Corrector | Path, profiles: Profiles) -> Profiles:
    """Profiles corrected by a fitted correction, or by the file that holds one."""
    fitted = load(correction) if isinstance(correction, Path) else correction
    return fitted.transform(profiles)
