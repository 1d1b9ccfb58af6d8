"""Plates arrive, an encoder follows them: one state an arrival, each written whole or not at all.

The folder is like that of `adapt` (`deploy.py`), so that `predict --adapted` reads it. A state also
holds student, teacher and heads, from which the next arrival, or another folder, may go on.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evenfield.adapt.base import Adapted
from evenfield.config import to_dict
from evenfield.data.store import Screen
from evenfield.data.unlabelled import Unlabelled
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.files import write_json
from evenfield.profile.plates import INDEX, make_adapter, model_id, open_index
from evenfield.records import digest, file_sha256
from evenfield.seeds import derive
from evenfield.train import checkpoint
from evenfield.train.checkpoint import Model
from evenfield.train.online import Arrival, adapt, check_fits, started
from evenfield.train.online_config import OnlineConfig

ADAPTER = "source"
"""A state says all: what reads it adds no rule of its own."""


def follow(
    pretrained: Model,
    classifier: Model,
    screen: Screen,
    out: Path,
    config: OnlineConfig,
    *,
    after: Path | None = None,
    on_progress: Callable[[str, int, int, dict[str, float]], None] | None = None,
) -> Path:
    """Adapt to the plates of a screen as they arrive; what is done is skipped.

    A call with more plates than one before goes on with the new ones.

    Args:
        pretrained: The run of `dino` on the source.
        classifier: The run of `frozen` on its encoder; it stays as it is.
        screen: The new plates; no label of theirs is read.
        out: Folder for the states.
        config: The settings.
        after: A folder of an earlier call (for another screen), whose last state is where the
            first arrival starts from; None = the source.
        on_progress: Called after each step with (arrival, step, total, named losses).

    Raises:
        InputError: The runs do not belong together, the screen does not fit, a plate does not
            exist, or `out` holds states of something else.
        StorageError: The disk is full.
    """
    check_fits(pretrained, classifier)
    _warn_of_other_scales(pretrained, classifier)
    readers = _readers(pretrained, classifier, screen)
    names = plates_to_follow(classifier, screen, readers[0], config)
    about = {
        "adapter": ADAPTER,
        "options": {},
        "screen": screen.fingerprint,
        "model": model_id(classifier),
        "online": _fixed(config),
        "pretrained": model_id(pretrained),
        "after": None if after is None else _last(after)["sha256"],
    }
    index = open_index(out, about, by="setting")
    if "arrivals" not in index:
        index["arrivals"] = []
        write_json(out / INDEX, index)  # a killed first arrival is recognised by it
    done = [plate for entry in index["arrivals"] for plate in entry["plates"]]
    new = [name for name in names if name not in done]
    begin = None if after is None else _networks(after, _last(after), classifier)
    for group in [new] if config.together and new else [[name] for name in new]:
        networks = begin
        if config.start == "previous" and index["arrivals"]:
            networks = _networks(out, index["arrivals"][-1], classifier)
        arrival = arriving(readers[0], group, done, config)
        own = started(pretrained, networks, keep_centre=config.keep_centre)
        short = digest(group)
        partial, file = out / f"{short}.partial.pt", out / f"{short}.pt"

        def show(step: int, total: int, parts: dict[str, float], name: str = arrival.name) -> None:
            if on_progress is not None:
                on_progress(name, step, total, parts)

        seeded = replace(config, seed=derive(config.seed, "arrival", *group))
        found = adapt(own, pretrained, classifier, arrival, readers, seeded, partial, show)
        state = Adapted(make_adapter(ADAPTER), found.predictor, classifier.method.predictor).state()
        content = {"schema": checkpoint.SCHEMA, "state": state, "networks": found.networks}
        checkpoint.save(file, content)
        entry = {"file": file.name, "sha256": file_sha256(file)}
        watch = asdict(found.watch)
        index["arrivals"].append({**entry, "plates": group, "steps": found.step, "watch": watch})
        index["plates"] |= {name: entry for name in group}
        write_json(out / INDEX, index)
        partial.unlink(missing_ok=True)
        done += group
    return out


def plates_to_follow(
    classifier: Model, screen: Screen, reader: Unlabelled, config: OnlineConfig
) -> list[str]:
    """The plates in the order of their arrival.

    Raises:
        InputError: A named plate does not exist; or none is named on a training screen without
            held-out units.
    """
    coded = reader.coded
    if config.plates:
        for name in config.plates:
            if name not in coded.contexts:
                raise InputError(
                    f"{screen.folder} has no plate {name!r}",
                    fix=f"name one of: {', '.join(coded.contexts[:20])}",
                )
        return list(dict.fromkeys(config.plates))
    if screen.fingerprint != classifier.screen:
        return list(coded.contexts)
    split = classifier.config.split  # what it names, not what it makes: that reads labels
    if split.column is None:
        held_out = np.isin(coded.holdout, list(split.test))
    else:
        held_out = (screen.manifest[split.column] == "test").to_numpy()
    if not held_out.any():
        raise InputError(
            f"the classifier was trained on every unit of {screen.folder}",
            fix="give a screen of new plates, or name plates with --online.plates",
        )
    return list(coded.by_context(np.flatnonzero(held_out)))


def arriving(
    reader: Unlabelled, group: list[str], before: list[str], config: OnlineConfig
) -> Arrival:
    """What is learned on and watched when some plates arrive after others."""
    coded, kind = reader.coded, reader.screen.manifest[reader.roles.control]
    left_out = ["empty"] if config.images == "all" else ["negcon", "empty"]
    wanted = ~kind.isin(left_out).to_numpy()
    pool = group if config.pool == "new" else [*before, *group]
    codes = [coded.contexts.index(name) for name in pool]
    return Arrival(
        name=", ".join(group),
        rows=np.flatnonzero(wanted & np.isin(coded.context, codes)),
        controls=np.concatenate([coded.controls_of(name) for name in group]),
    )


def _readers(pretrained: Model, classifier: Model, screen: Screen) -> tuple[Unlabelled, Unlabelled]:
    """For the views of the pretraining, and for images as the classifier reads them."""
    found = []
    for model, needs in ((pretrained, pretrained.method.needs), (classifier, None)):
        model.check(screen)
        device = next(model.method.parameters()).device
        found.append(
            Unlabelled(screen, classifier.roles, model.config.view, model.normaliser, device, needs)
        )
    return found[0], found[1]


def _warn_of_other_scales(pretrained: Model, classifier: Model) -> None:
    """Say so where the two runs normalise pixels otherwise: the encoder sees two kinds of images.

    Where every crop is normalised by itself this makes no difference.
    """
    own = all(model.config.view.self_normalise for model in (pretrained, classifier))
    if not own and pretrained.normaliser.to_dict() != classifier.normaliser.to_dict():
        warnings.warn(
            "the pretraining and the classifier normalise pixels by other statistics; train both "
            "with the same view and the same split",
            EvenfieldWarning,
            stacklevel=3,
        )


def _fixed(config: OnlineConfig) -> dict[str, Any]:
    """The settings that decide the states; plates may be added later, devices may differ."""
    free = ("plates", "device", "checkpoint_seconds")
    return {name: value for name, value in to_dict(config).items() if name not in free}


def _last(folder: Path) -> dict[str, Any]:
    """A folder's last arrival.

    Raises:
        InputError: There is none.
    """
    path = folder / INDEX
    index = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not index.get("arrivals"):
        raise InputError(
            f"{folder} holds no state to go on from",
            fix="give a folder of `evenfield online` in which an arrival is done",
        )
    last: dict[str, Any] = index["arrivals"][-1]
    return last


def _networks(folder: Path, entry: dict[str, Any], classifier: Model) -> dict[str, Tensor]:
    """Student, teacher and heads of an arrival.

    Raises:
        InputError: They belong to another classifier.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if index["model"] != model_id(classifier):
        raise InputError(
            f"{folder} holds states of another model", fix="give one of this very classifier"
        )
    return checkpoint.load(folder / entry["file"])["networks"]
