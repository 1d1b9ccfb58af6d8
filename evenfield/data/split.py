"""Who trains, who selects, who is judged: wells and batches are split, images never."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evenfield.config import Regime, SplitConfig
from evenfield.data.sampler import (
    ContextRows,
    few,
    label_shift_contexts,
    plain_contexts,
)
from evenfield.data.units import PARTS, WELL, Units, units
from evenfield.errors import InputError
from evenfield.seeds import numpy_generator

__all__ = ["WELL", "Split", "Units", "contexts_for", "hold_out_wells", "make_split", "units"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Disjoint rows; each holds labelled images of perturbed wells only.

    Attributes:
        train: What the loss sees.
        validation: What selects the model: source units, never a test unit (but the test itself
            where an `oracle` selects).
        in_domain: Held-out wells of the training plates; where a benchmark's column splits, the
            images of training units that it keeps for judging.
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
    """Split the labelled images, by the settings or by the column that they name.

    Raises:
        InputError: A named unit does not exist, serves two ends, or nothing is left to train on or
            to select with; or fewer than two classes remain.
    """
    labelled = np.flatnonzero(coded.label >= 0)
    if config.column is not None:
        return _split_by_column(coded, config, labelled)
    names = sorted(set(coded.holdout[labelled]))
    _require_known(config.test, names, "test")
    is_test = np.isin(coded.holdout[labelled], list(config.test))
    validation_units = _validation_units(coded, config, labelled[~is_test], labelled[is_test])
    is_validation = ~is_test & np.isin(_domains(coded, labelled), list(validation_units))
    rest = labelled[~is_test & ~is_validation]
    in_domain = hold_out_wells(coded, rest, config.wells, config.seed, "in-domain")
    train = np.setdiff1d(rest, in_domain)
    if config.select_on == "oracle":
        validation = labelled[is_test]
    elif validation_units:
        validation = labelled[is_validation]
    else:
        validation = hold_out_wells(coded, train, config.wells, config.seed, "validation")
        train = np.setdiff1d(train, validation)
    return _checked(
        coded,
        Split(
            train=train,
            validation=validation,
            in_domain=in_domain,
            test=labelled[is_test],
            test_units=tuple(config.test),
            validation_units=validation_units,
        ),
        may_share={("validation", "test")} if config.select_on == "oracle" else set(),
    )


def _split_by_column(coded: Units, config: SplitConfig, labelled: np.ndarray) -> Split:
    """The split that a benchmark's own column prescribes; no row of it changes sides.

    `units` selects on `val` (without any, on training domains, which then do not train), `wells`
    on `id_val` or else `id_test`, `oracle` on `test`. What is left of `id_test` and `id_val` is
    judged in-domain. Those may be other sites of training wells, as in RxRx1-WILDS: an easier
    question than wells that were never seen.
    """
    column, part = config.column, coded.part
    if part is None:
        raise InputError(
            f"the manifest was coded without the column {column!r}", fix="call units(column=...)"
        )
    if config.test:
        raise InputError(
            f"test names {config.test[0]!r}, but the column {column} says who is judged",
            fix="leave split.test or split.column away",
        )
    rows = {name: labelled[part[labelled] == name] for name in PARTS}
    train, test = rows["train"], rows["test"]
    both = sorted(set(coded.holdout[train]) & set(coded.holdout[[*rows["val"], *test]]))
    if both:
        raise InputError(
            f"the column {column} has images of {str(both[0])!r} in train and in val or test",
            fix="call those of a training unit id_val or id_test",
        )
    own = [rows[name] for name in ("id_val", "id_test") if len(rows[name])]
    may_share = {("train", "in_domain"), ("validation", "in_domain")}
    validation_units: tuple[str, ...] = ()
    if config.select_on == "units" and len(rows["val"]):
        if config.validation:
            raise InputError(
                f"{config.validation[0]!r} is to select, but the column {column} says who does",
                fix="leave split.validation away",
            )
        validation = rows["val"]
        validation_units = tuple(sorted(set(_domains(coded, validation))))
    else:
        validation_units = _validation_units(coded, config, train, test)
        chosen = np.isin(_domains(coded, train), list(validation_units))
        if config.select_on == "oracle":
            validation = test
            may_share.add(("validation", "test"))
        elif config.select_on == "units":
            train, validation = train[~chosen], train[chosen]
            own = [kept[~np.isin(_domains(coded, kept), validation_units)] for kept in own]
        elif own:
            validation, *own = own
            may_share.add(("train", "validation"))
        else:
            validation = hold_out_wells(coded, train, config.wells, config.seed, "validation")
            train = np.setdiff1d(train, validation)
    return _checked(
        coded,
        Split(
            train=train,
            validation=validation,
            in_domain=np.sort(np.concatenate([*own, train[:0]])),
            test=test,
            test_units=tuple(sorted(set(coded.holdout[test]))),
            validation_units=validation_units,
        ),
        may_share=may_share,
    )


def _checked(coded: Units, split: Split, *, may_share: set[tuple[str, str]]) -> Split:
    """The split, if it can be trained on and no well leaks."""
    if len(split.train) == 0:
        raise InputError(
            "the split leaves no image to train on", fix="hold out fewer units, or drop validation"
        )
    classes = np.unique(coded.label[split.train])
    if len(classes) < 2:
        raise InputError(
            f"the training images hold {len(classes)} class(es): "
            f"{', '.join(coded.classes[code] for code in classes) or 'none'}",
            fix="choose a label column with two classes or more, or hold out fewer units",
        )
    _refuse_leaks(coded, split, may_share)
    return split


def _domains(coded: Units, rows: np.ndarray) -> np.ndarray:
    return np.array(coded.domains)[coded.domain[rows]]


def _require_known(given: tuple[str, ...], names: list[str], part: str) -> None:
    for name in given:
        if name not in names:
            raise InputError(
                f"{part} names {name!r}, which is no unit of the screen with a label",
                fix=f"use some of: {', '.join(names)}",
            )


def _validation_units(
    coded: Units, config: SplitConfig, source: np.ndarray, test: np.ndarray
) -> tuple[str, ...]:
    """The domains that select the model; none where held-out wells do."""
    if config.select_on != "units" and config.validation:
        raise InputError(
            f"{config.validation[0]!r} is to select, but select_on is {config.select_on!r}",
            fix="set select_on to `units`, or name no validation unit",
        )
    sources, tests = (sorted(set(_domains(coded, rows))) for rows in (source, test))
    if config.select_on == "wells":
        return ()
    if config.select_on == "oracle":
        if not tests:
            raise InputError(
                "an oracle selects on the test images, and there are none",
                fix="hold out a unit, or set select_on to `units` or `wells`",
            )
        return tuple(tests)
    _require_known(config.validation, sorted({*sources, *tests, *config.test}), "validation")
    both = sorted((set(config.test) | set(tests) - set(sources)) & set(config.validation))
    if both:
        raise InputError(f"{both[0]!r} cannot both select and judge", fix="name another unit")
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


def _refuse_leaks(coded: Units, split: Split, may_share: set[tuple[str, str]]) -> None:
    wells = {
        name: np.unique(coded.well[getattr(split, name)])
        for name in ("train", "validation", "in_domain", "test")
    }
    for one, other in combinations(wells, 2):
        shared = np.intersect1d(wells[one], wells[other], assume_unique=True)
        if len(shared) and (one, other) not in may_share:
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
