"""Checkpoints: one file, written whole or not at all, read without pickle, and self-describing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evenfield import __version__
from evenfield.config import RunConfig, from_dict, to_dict
from evenfield.data.manifest import Roles
from evenfield.data.store import Screen
from evenfield.data.transforms import Normaliser
from evenfield.errors import InputError
from evenfield.files import whole
from evenfield.methods.base import METHODS, Method
from evenfield.nn.backbones import build_backbone, load_weights

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A method with all that is needed to use it on another screen.

    Attributes:
        method: The method, in eval mode.
        config: The run's configuration.
        roles: Which column played which role.
        classes: Names of the label codes.
        channels: Names of the channels, in the order of the network's input.
        dtype: Pixel type of the screen that it was trained on.
        normaliser: Fitted on the training rows.
        screen: Fingerprint of the training screen.
        reference: Spread of the training plates' controls, for the shift score: `mean`, `scale`.
    """

    method: Method
    config: RunConfig
    roles: Roles
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    dtype: str
    normaliser: Normaliser
    screen: str
    reference: dict[str, Tensor]

    def check(self, screen: Screen) -> None:
        """Refuse a screen that the network cannot read.

        Raises:
            InputError: Its channels, their order or its pixel type differ.
        """
        if tuple(screen.channels) != self.channels:
            raise InputError(
                f"{screen.folder} has the channels {', '.join(screen.channels)}; the model was "
                f"trained on {', '.join(self.channels)}",
                fix="ingest the plates with the same channels, by the same names and in the same "
                "order (`--channels`)",
            )
        if str(screen.dtype) != self.dtype:
            raise InputError(
                f"{screen.folder} holds {screen.dtype} pixels; the model was trained on "
                f"{self.dtype}",
                fix="ingest the plates with the same bit depth (`--percentile` makes 8 bit)",
            )


def build_method(config: RunConfig, *, num_channels: int, num_classes: int) -> Method:
    """A method with fresh weights, drawn from the run's seed.

    Raises:
        InputError: The method, one of its options or the backbone does not exist.
    """
    cls = METHODS[config.method]
    options: Any = from_dict(cls.Config, config.options, where=f"{config.method}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)  # torch draws initial weights from no other source
        channels = num_channels + cls.extra_channels(options)
        backbone, d = build_backbone(config.train.backbone, channels)
        if config.train.weights is not None and is_run(config.train.weights):
            restore(backbone, encoder_of(config.train.weights), config.train.weights)
        elif config.train.weights is not None:
            load_weights(backbone, config.train.weights, channels, stem=config.train.stem)
        return cls(options, backbone=backbone, d=d, k=num_classes, c=num_channels)


def is_run(path: Path) -> bool:
    """Whether this is a folder of a run (or a checkpoint in one), not a file of weights alone."""
    return path.is_dir() or (path.suffix == ".pt" and (path.parent / "run.json").exists())


def encoder_of(path: Path) -> dict[str, Tensor]:
    """The state of the encoder that a run deploys (of self-distillation: the teacher's).

    Args:
        path: A run's folder, or one of its checkpoint files.

    Raises:
        InputError: See `load`.
    """
    start = "predictor.backbone."
    state = load(path if path.is_file() else path / "best.pt")["method"]
    return {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint to a temporary name and rename it.

    Raises:
        StorageError: The disk is full or read-only; what was there before stays.
    """
    with whole(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # as which torch reports a full disk
            raise OSError(str(error)) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        InputError: It is missing, cut short, no checkpoint of ours, or of a newer schema.
    """
    if not path.exists():
        raise InputError(
            f"there is no checkpoint {path}", fix="give the folder that `evenfield train` wrote"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise InputError(
            f"{path} is no readable checkpoint: {error}", fix="train again, or restore the file"
        ) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"{path} has checkpoint schema {schema!r}; this version reads {SCHEMA}",
            fix="train again with this version, or use the version that wrote it",
        )
    return content


def describe(
    config: RunConfig,
    screen: Screen,
    roles: Roles,
    classes: tuple[str, ...],
    normaliser: Normaliser,
) -> dict[str, Any]:
    """The part of a checkpoint that does not change during a run."""
    about = {
        "config": to_dict(config),
        "roles": to_dict(roles),
        "classes": list(classes),
        "channels": list(screen.channels),
        "dtype": str(screen.dtype),
        "normaliser": normaliser.to_dict(),
        "screen": screen.fingerprint,
        "version": __version__,
    }
    return {"schema": SCHEMA, "about": json.dumps(about, sort_keys=True)}


def open_model(path: Path, *, device: torch.device | str = "cpu") -> Model:
    """The model of a finished (or stopped) run.

    Args:
        path: A run's folder, or one of its checkpoint files.
        device: Where the weights go.

    Raises:
        InputError: See `load`; or the weights do not fit the described network.
    """
    file = path if path.is_file() else path / "best.pt"
    content = load(file)
    about = json.loads(content["about"])
    config = from_dict(RunConfig, _without_weights(about["config"]))
    method = build_method(
        config, num_channels=len(about["channels"]), num_classes=len(about["classes"])
    )
    restore(method, content["method"], file)
    method.predictor.calibration = {
        name: {key: value.to(device) for key, value in known.items()}
        for name, known in content.get("calibration", {}).items()
    }
    return Model(
        method=method.to(device).eval(),
        config=config,
        roles=from_dict(Roles, about["roles"]),
        classes=tuple(about["classes"]),
        channels=tuple(about["channels"]),
        dtype=about["dtype"],
        normaliser=Normaliser.from_dict(about["normaliser"]),
        screen=about["screen"],
        reference=content.get("reference", {}),
    )


def _without_weights(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the files of initial weights, which need not exist any more."""
    options = {
        name: value for name, value in config["options"].items() if not name.endswith("weights")
    }
    return {**config, "options": options, "train": {**config["train"], "weights": None}}


def restore(method: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights, strictly.

    Raises:
        InputError: Names or shapes differ.
    """
    try:
        method.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"the weights in {path} do not fit: {error}", fix="use the version that wrote them"
        ) from error
