"""Who trains, who selects, who is judged: wells and batches are split, images never."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from evenfield.config import Regime, SplitConfig
from evenfield.data.manifest import Roles
from evenfield.data.sampler import (
    ContextRows,
    few,
    label_shift_contexts,
    plain_contexts,
)
from evenfield.errors import InputError
from evenfield.seeds import numpy_generator

WELL = ["Metadata_Source", "Metadata_Plate", "Metadata_Well"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """A manifest in codes: what samplers and splits work on.

    Attributes:
        label: (n,) class codes; -1 for controls, empty wells and unknown labels.
        classes: Names of the codes.
        is_control: (n,) bool, negative controls.
        context: (n,) codes of the context role.
        contexts: Names of the context codes.
        domain: (n,) codes of the domain role.
        domains: Names of the domain codes.
        holdout: (n,) names of the unit that a protocol leaves out.
        well: (n,) codes of the wells.
    """

    label: np.ndarray
    classes: tuple[str, ...]
    is_control: np.ndarray
    context: np.ndarray
    contexts: tuple[str, ...]
    domain: np.ndarray
    domains: tuple[str, ...]
    holdout: np.ndarray
    well: np.ndarray

    def by_context(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows grouped by context, in the order of the contexts' names."""
        codes = self.context[rows]
        return {self.contexts[code]: rows[codes == code] for code in np.unique(codes)}

    def controls_of(self, context: str) -> np.ndarray:
        """The rows of a context's negative controls."""
        return np.flatnonzero(self.is_control & (self.context == self.contexts.index(context)))


def units(
    manifest: pd.DataFrame,
    roles: Roles,
    *,
    classes: tuple[str, ...] | None = None,
    exclude: tuple[str, ...] = (),
) -> Units:
    """Code a manifest by its roles.

    Args:
        manifest: A screen's manifest.
        roles: Which column plays which role.
        classes: The class names of a trained model; None = those found here.
        exclude: Labels that count as unknown.

    Raises:
        InputError: A role's column is missing, or an excluded label does not exist.
    """
    for role in ("label", "control", "context", "domain", "holdout"):
        column = getattr(roles, role)
        if column not in manifest:
            raise InputError(
                f"the manifest has no column {column!r}, which plays the role {role!r}",
                fix=f"name another column for {role!r}; there are: {', '.join(manifest.columns)}",
            )
    is_control = (manifest[roles.control] == "negcon").to_numpy()
    text = manifest[roles.label].astype("string").fillna("")
    text = text.where(~manifest[roles.control].isin(["negcon", "empty"]), "")
    found = sorted(set(text) - {""})
    absent = sorted(set(exclude) - set(found))
    if absent and classes is None:
        raise InputError(
            f"there is no label {absent[0]!r} to leave out",
            fix=f"the labels are: {', '.join(found)}",
        )
    names = classes if classes is not None else tuple(n for n in found if n not in exclude)
    code = {name: number for number, name in enumerate(names)}
    label = text.map(lambda name: code.get(name, -1)).to_numpy(dtype=np.int64)
    context, contexts = _codes(manifest[roles.context])
    domain, domains = _codes(manifest[roles.domain])
    well = pd.factorize(pd.MultiIndex.from_frame(manifest[WELL].astype("string").fillna("")))[0]
    return Units(
        label=label,
        classes=tuple(names),
        is_control=is_control,
        context=context,
        contexts=contexts,
        domain=domain,
        domains=domains,
        holdout=manifest[roles.holdout].astype("string").fillna("").to_numpy(dtype=str),
        well=well,
    )


def _codes(column: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    text = column.astype("string").fillna("")
    names = tuple(sorted(set(text)))
    place = {name: number for number, name in enumerate(names)}
    return text.map(place).to_numpy(dtype=np.int64), names


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Disjoint rows; each holds labelled images of perturbed wells only.

    Attributes:
        train: What the loss sees.
        validation: What selects the model: source units, never a test unit.
        in_domain: Held-out wells of the training plates.
        test: All labelled images of the held-out units.
        test_units: Their names.
        validation_units: Names of the units that select; empty = wells of the training plates.
    """

    train: np.ndarray
    validation: np.ndarray
    in_domain: np.ndarray
    test: np.ndarray
    test_units: tuple[str, ...]
    validation_units: tuple[str, ...]


def make_split(coded: Units, config: SplitConfig) -> Split:
    """Split the labelled images.

    Raises:
        InputError: A named unit does not exist, serves two ends, or nothing is left to train on;
            or fewer than two classes remain.
    """
    labelled = np.flatnonzero(coded.label >= 0)
    names = sorted(set(coded.holdout[labelled]))
    _require_known(config.test, names, "test")
    holdout = coded.holdout[labelled]
    is_test = np.isin(holdout, list(config.test))
    domain = np.array(coded.domains)[coded.domain[labelled]]
    sources = sorted(set(domain[~is_test]))
    _require_known(config.validation, sorted({*sources, *config.test}), "validation")
    both = sorted((set(config.test) | (set(domain) - set(sources))) & set(config.validation))
    if both:
        raise InputError(f"{both[0]!r} cannot both select and judge", fix="name another unit")
    validation_units = _validation_units(config, sources)
    is_validation = ~is_test & np.isin(domain, list(validation_units))
    rest = labelled[~is_test & ~is_validation]
    if len(rest) == 0:
        raise InputError(
            "the split leaves no image to train on", fix="hold out fewer units, or drop validation"
        )
    in_domain = hold_out_wells(coded, rest, config.wells, config.seed, "in-domain")
    train = np.setdiff1d(rest, in_domain)
    if validation_units:
        validation = labelled[is_validation]
    else:
        validation = hold_out_wells(coded, train, config.wells, config.seed, "validation")
        train = np.setdiff1d(train, validation)
    num_classes = len(np.unique(coded.label[train]))
    if num_classes < 2:
        raise InputError(
            f"the training images hold {num_classes} class(es): "
            f"{', '.join(coded.classes[code] for code in np.unique(coded.label[train])) or 'none'}",
            fix="choose a label column with two classes or more, or hold out fewer units",
        )
    split = Split(
        train=train,
        validation=validation,
        in_domain=in_domain,
        test=labelled[is_test],
        test_units=tuple(config.test),
        validation_units=tuple(validation_units),
    )
    _refuse_leaks(coded, split)
    return split


def _require_known(given: tuple[str, ...], names: list[str], part: str) -> None:
    for name in given:
        if name not in names:
            raise InputError(
                f"{part} names {name!r}, which is no unit of the screen with a label",
                fix=f"use some of: {', '.join(names)}",
            )


def _validation_units(config: SplitConfig, sources: list[str]) -> tuple[str, ...]:
    """The training domains that select the model; none where held-out wells do."""
    if config.select_on == "wells":
        if config.validation:
            raise InputError(
                f"{config.validation[0]!r} is to select, but wells are (select_on)",
                fix="set select_on to `units`, or name no validation unit",
            )
        return ()
    if config.validation:
        return config.validation
    if len(sources) < 2:
        raise InputError(
            f"{len(sources)} domain(s) are left to train on and to select with",
            fix="set select_on to `wells`, or hold out fewer units",
        )
    return (str(numpy_generator(config.seed, "validation").choice(sources)),)


def hold_out_wells(
    coded: Units, rows: np.ndarray, share: float, seed: int, purpose: str
) -> np.ndarray:
    """Rows of a share of the wells of each (plate, class): at least one well where it has two."""
    rng = numpy_generator(seed, "wells", purpose)
    groups: dict[tuple[int, int], list[int]] = {}
    for well, row in zip(*np.unique(coded.well[rows], return_index=True), strict=True):
        key = (int(coded.context[rows[row]]), int(coded.label[rows[row]]))
        groups.setdefault(key, []).append(int(well))
    held: list[int] = []
    for key in sorted(groups):
        wells = groups[key]
        num = round(share * len(wells))
        if share > 0 and len(wells) > 1:
            num = min(max(num, 1), len(wells) - 1)
        held.extend(rng.permutation(wells)[:num].tolist())
    return rows[np.isin(coded.well[rows], held)]


def _refuse_leaks(coded: Units, split: Split) -> None:
    parts = {
        name: set(coded.well[getattr(split, name)])
        for name in ("train", "validation", "in_domain", "test")
    }
    names = list(parts)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            shared = parts[one] & parts[other]
            if shared:
                raise InputError(
                    f"{len(shared)} wells lie in both {one} and {other}",
                    fix="a well must have one value of the holdout role and one label",
                )


def contexts_for(coded: Units, rows: np.ndarray, regime: Regime, *, seed: int) -> list[ContextRows]:
    """The contexts in which scored rows are adapted to and predicted, under a regime.

    Args:
        coded: The coded manifest.
        rows: Scored rows (labelled images of perturbed wells).
        regime: How many images and controls a context has, and its class mix.
        seed: Seed of the draws; the same contexts for every method and adapter.

    Raises:
        InputError: A label shift without a number of images.
    """
    if regime.alpha is not None and regime.num_images is None:
        raise InputError("a label shift needs a number of images", fix="set num_images, e.g. 64")
    found: list[ContextRows] = []
    for name, perturbed in coded.by_context(rows).items():
        # One image has no class mix to shift.
        if regime.alpha is None or regime.num_images == 1:
            drawn = plain_contexts(name, perturbed, num_images=regime.num_images, seed=seed)
        else:
            assert regime.num_images is not None
            drawn = label_shift_contexts(
                name,
                perturbed,
                coded.label[perturbed],
                alpha=regime.alpha,
                num_images=regime.num_images,
                seed=seed,
            )
        drawn = drawn[: regime.num_contexts]
        controls = coded.controls_of(name)
        found.extend(
            ContextRows(
                name=name,
                perturbed=item.perturbed,
                controls=few(controls, regime.num_controls, seed, "controls", name, number),
                short=item.short,
            )
            for number, item in enumerate(drawn)
        )
    return found
