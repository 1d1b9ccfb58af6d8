"""What a run works on: rows, pixels, the method, and the sampler that feeds it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from evenfield.config import RunConfig, TrainConfig
from evenfield.data.dataset import Reader
from evenfield.data.groups import Chunks, Domains, Pure
from evenfield.data.manifest import Roles
from evenfield.data.multicrop import crop_sizes
from evenfield.data.pairs import Pairs, find_partners
from evenfield.data.sampler import Episodes, Sampler, Shuffled
from evenfield.data.split import Split, Units, make_split, units
from evenfield.data.store import Screen
from evenfield.data.transforms import Normaliser
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.methods.base import Method
from evenfield.seeds import derive
from evenfield.train.checkpoint import build_method
from evenfield.train.loop import device_of
from evenfield.types import UNKNOWN, Needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a run works on; the same for training, validation and judging.

    Attributes:
        screen: The screen.
        coded: Its manifest in codes.
        split: Who trains, who selects, who is judged.
        reader: Of the screen, for the batches of the method.
        method: On its device.
        roles: Which column plays which role.
        rows: What is trained on: the split's training rows, and unlabelled ones where asked for.
    """

    screen: Screen
    coded: Units
    split: Split
    reader: Reader
    method: Method
    roles: Roles
    rows: np.ndarray


def prepare_run(screen: Screen, config: RunConfig, roles: Roles) -> Setup:
    """Split, fit the normaliser on the training rows, and build the method.

    Raises:
        InputError: The split, the roles or a setting cannot be used.
    """
    device = device_of(config.train.device)
    coded = units(screen.manifest, roles, exclude=config.split.exclude, column=config.split.column)
    split = make_split(coded, config.split)
    normaliser = Normaliser.fit(screen, split.train, config.view)
    method = build_method(config, num_channels=len(screen.channels), num_classes=len(coded.classes))
    reader = Reader(screen, coded, config.view, normaliser, device, method.needs)
    side = config.view.crop or min(screen.shape[1:])
    if method.needs.views:
        sides = crop_sizes(config.view, *screen.shape[1:])
        side = min(side, *sides[: 2 if method.needs.local_views else 1])
    if side < method.needs.smallest_side:
        raise InputError(
            f"{config.method} needs images of {method.needs.smallest_side} pixels or more; these "
            f"have {side}",
            fix="use a larger crop or larger images",
        )
    if method.needs.unit and config.view.normalise != "unit":
        raise InputError(
            f"{config.method} works on pixels in 0 to 1, and the view normalises by "
            f"{config.view.normalise!r}",
            fix="give --view.normalise unit",
        )
    if config.train.select_by not in ("loss", "last") and not method.classifies:
        raise InputError(
            f"this training of {config.method} leaves the classifier as it is, so that "
            f"{config.train.select_by!r} cannot select",
            fix="give --train.select-by loss",
        )
    rows = training_rows(screen, coded, split, roles, config, method.needs)
    method.learn_design(torch.from_numpy(coded.domain[rows]))
    return Setup(
        screen=screen,
        coded=coded,
        split=split,
        reader=reader,
        method=method.to(device),
        roles=roles,
        rows=rows,
    )


def training_rows(
    screen: Screen, coded: Units, split: Split, roles: Roles, config: RunConfig, needs: Needs
) -> np.ndarray:
    """The split's training rows, and for `unlabelled` of `all` those without a label beside them.

    These are images of the same units and domains (and of the part `train`, where a column splits):
    controls and wells without a label, but no empty ones.

    Raises:
        InputError: Unlabelled images are asked for, and the method learns from labels.
    """
    if config.train.unlabelled == "none":
        return split.train
    if not needs.views:
        raise InputError(
            f"{config.method} learns from labels and cannot use images without them",
            fix="give --train.unlabelled none, or train a self-supervised method",
        )
    beside = coded.label == UNKNOWN
    beside &= np.isin(coded.holdout, np.unique(coded.holdout[split.train]))
    beside &= np.isin(coded.domain, np.unique(coded.domain[split.train]))
    beside &= (screen.manifest[roles.control] != "empty").to_numpy()
    if coded.part is not None:
        beside &= coded.part == "train"
    return np.union1d(split.train, np.flatnonzero(beside))


def sampler_for(setup: Setup, train: TrainConfig) -> Sampler:
    """The sampler of a configuration over the training rows, with partners where they are wanted.

    Raises:
        InputError: See `anchors_for` and `find_partners`; or the method takes no pairs.
    """
    needs = setup.method.needs
    pairs = train.pairs
    if pairs == "auto":
        pairs = "domain" if needs.pairs else "none"
    if pairs == "none":
        return anchors_for(setup, train, setup.rows)
    if not needs.views:
        raise InputError(
            f"{type(setup.method).name} takes no pairs of images (--train.pairs {pairs})",
            fix="give --train.pairs auto, or train a self-supervised method",
        )
    found = find_partners(
        setup.screen.manifest,
        setup.rows,
        setup.roles,
        by=pairs,
        fallback=train.pair_fallback,
        other_position=train.pair_positions == "other",
    )
    anchors = anchors_for(setup, train, found.rows)
    return Pairs(anchors, found.partners, found.wells, seed=train.seed)


def anchors_for(setup: Setup, train: TrainConfig, rows: np.ndarray) -> Sampler:
    """The sampler of a configuration over some rows.

    `auto` takes episodes for a method that learns from one context at a time or from its controls,
    `domains` for one that compares domains (and for Fish), else shuffled images.

    Raises:
        InputError: The method needs another sampler, the screen has too few domains for it, or a
            setting of the sampler cannot be used.
    """
    needs = setup.method.needs
    episodic = needs.one_context or needs.controls
    name = train.sampler
    if name == "auto":
        several = needs.domains > 1 or train.meta_lr is not None
        name = "episodes" if episodic else "domains" if several else "shuffled"
    _check_needs(setup, name)
    label = setup.coded.label if train.balance == "class" else None
    if name == "episodes":
        if train.pure is not None:
            raise InputError(
                f"--train.pure {train.pure} and episodes cannot go together",
                fix="drop --train.pure: an episode is one context; or choose another sampler",
            )
        perturbed = setup.coded.by_context(rows)
        return Episodes(
            perturbed,
            {name: setup.coded.controls_of(name) for name in perturbed},
            num_perturbed=train.num_perturbed,
            num_controls=train.num_controls if needs.controls else 0,
            seed=train.seed,
            ratio=train.ratio,
            missing_controls=train.missing_controls,
            label=label,
        )

    def plain(rows: np.ndarray, seed: int, among: str) -> Sampler:
        domain, size = setup.coded.domain, train.num_perturbed
        if name == "shuffled":
            return Shuffled(rows, size=size, seed=seed, label=label)
        if name == "chunks":
            return Chunks(rows, domain, size=size, chunk=train.chunk, seed=seed, label=label)
        return Domains(
            rows,
            domain,
            size=size,
            num_domains=train.num_domains,
            distinct=train.distinct_domains,
            seed=seed,
            label=label,
            among=among,
        )

    if train.pure is None:
        return plain(rows, train.seed, "the training images")
    manifest = setup.screen.manifest
    if train.pure not in manifest:
        raise InputError(
            f"the manifest has no column {train.pure!r} (--train.pure)",
            fix=f"name one of: {', '.join(manifest.columns)}",
        )
    value = manifest[train.pure].astype("string").fillna("").to_numpy(dtype=str)[rows]
    parts = [
        plain(rows[value == one], derive(train.seed, "pure", one), f"images of {one!r}")
        for one in np.unique(value)
    ]
    return Pure(parts, seed=train.seed)


def _check_needs(setup: Setup, sampler: str) -> None:
    """Refuse a sampler that cannot feed the method; warn where it leaves it without a penalty."""
    method, needs = type(setup.method).name, setup.method.needs
    if sampler != "episodes" and (needs.one_context or needs.controls):
        what = "the images of one context" if needs.one_context else "controls"
        raise InputError(
            f"{method} needs batches of {what}, which the sampler {sampler!r} does not draw",
            fix="give --train.sampler auto or episodes",
        )
    if needs.domains < 2:
        return
    found = len(np.unique(setup.coded.domain[setup.split.train]))
    if found < needs.domains:
        raise InputError(
            f"{method} compares {needs.domains} domains or more; the training images hold {found}",
            fix="hold out fewer units, choose another column for the role `domain` "
            "(--roles.domain), or train erm",
        )
    if sampler == "episodes":
        warnings.warn(
            f"{method} compares the domains of a batch; an episode holds one context, so that "
            "nothing is compared",
            EvenfieldWarning,
            stacklevel=3,
        )
