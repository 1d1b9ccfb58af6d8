"""What enters a mini-batch: a pure function of (seed, step), so that resuming needs no replay."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evenfield.errors import EvenfieldWarning, InputError
from evenfield.seeds import derive, numpy_generator

Rows = np.ndarray


class Sampler(ABC):
    """Rows of the manifest for each step.

    Attributes:
        passes_per_epoch: How many batches make an epoch.
    """

    passes_per_epoch: int

    @abstractmethod
    def rows(self, step: int) -> Rows:
        """The rows of one batch, int64."""


class Shuffled(Sampler):
    """Every row once an epoch, in an order drawn for that epoch; an incomplete last batch is left.

    Args:
        rows: Labelled rows.
        size: Rows in a batch.
        seed: The run's seed.
        label: (N,) class codes of all rows of the manifest; given, every batch draws the classes
            evenly, and rows within a class with replacement.

    Raises:
        InputError: There is no row.
    """

    def __init__(
        self, rows: Rows, *, size: int, seed: int, label: np.ndarray | None = None
    ) -> None:
        if len(rows) == 0:
            raise InputError(
                "there is no labelled training image",
                fix="check the label role and the split (`evenfield audit`)",
            )
        self._rows = np.asarray(rows, dtype=np.int64)
        self._size = min(size, len(rows))
        self._seed = seed
        self._classes = None if label is None else by_class(self._rows, label)
        self._epoch = -1
        self._order = self._rows
        self.passes_per_epoch = len(rows) // self._size

    def rows(self, step: int) -> Rows:
        """The rows of one batch."""
        if self._classes is not None:
            rng = numpy_generator(self._seed, "balanced", step)
            return draw_balanced(rng, self._classes, self._size)
        epoch, place = divmod(step, self.passes_per_epoch)
        if epoch != self._epoch:
            self._order = numpy_generator(self._seed, "epoch", epoch).permutation(self._rows)
            self._epoch = epoch
        return self._order[place * self._size : (place + 1) * self._size]


class Episodes(Sampler):
    """One plate a batch: perturbed images first, then negative controls of the same plate.

    The plate is drawn uniformly, not by its size; images without replacement unless the plate has
    no more of them than asked for (as in the released code of CS-ARM-BN). The draw costs O(batch).

    Args:
        perturbed: Labelled rows by context.
        controls: Control rows by context.
        num_perturbed: Perturbed images in an episode.
        num_controls: Controls in an episode; 0 = ARM-BN.
        ratio: `fixed`, or `random`: 2 to num_perturbed images, 8 to num_controls controls.
        missing_controls: What to do with plates without any control: refuse them, or train on them
            `without`, as ARM-BN does.
        seed: The run's seed.
        label: (N,) class codes of all rows of the manifest; given, an episode draws the classes of
            its plate evenly, and images within a class with replacement.
    """

    def __init__(
        self,
        perturbed: dict[str, Rows],
        controls: dict[str, Rows],
        *,
        num_perturbed: int,
        num_controls: int,
        seed: int,
        ratio: Literal["fixed", "random"] = "fixed",
        missing_controls: Literal["error", "without"] = "error",
        label: np.ndarray | None = None,
    ) -> None:
        self._contexts = sorted(name for name, rows in perturbed.items() if len(rows))
        if not self._contexts:
            raise InputError(
                "no context (plate) has a labelled training image",
                fix="check the roles of label and context (`evenfield audit`)",
            )
        bare = [name for name in self._contexts if len(controls.get(name, ())) == 0]
        if num_controls and bare:
            names = ", ".join(bare[:5]) + (" ..." if len(bare) > 5 else "")
            if missing_controls == "error":
                raise InputError(
                    f"{len(bare)} of {len(self._contexts)} training contexts have no negative "
                    f"control: {names}",
                    fix="mark their controls in Metadata_ControlType, leave these plates out, or "
                    "give --train.missing-controls without",
                )
            warnings.warn(
                f"contexts without controls train without them, as ARM-BN does: {names}",
                EvenfieldWarning,
                stacklevel=2,
            )
        self._perturbed = {name: np.asarray(perturbed[name], np.int64) for name in self._contexts}
        self._controls = {
            name: np.asarray(controls.get(name, ()), np.int64) for name in self._contexts
        }
        self._classes = (
            None
            if label is None
            else {name: by_class(rows, label) for name, rows in self._perturbed.items()}
        )
        self._num_perturbed, self._num_controls = num_perturbed, num_controls
        self._ratio, self._seed = ratio, seed
        total = sum(map(len, self._perturbed.values()))
        self.passes_per_epoch = max(1, total // num_perturbed)

    def rows(self, step: int) -> Rows:
        """The rows of one episode."""
        rng = numpy_generator(self._seed, "episode", step)
        name = self._contexts[rng.integers(len(self._contexts))]
        num_perturbed, num_controls = self._num_perturbed, self._num_controls
        if self._ratio == "random":
            num_perturbed = int(rng.integers(min(2, num_perturbed), num_perturbed + 1))
            num_controls = int(rng.integers(min(8, num_controls), num_controls + 1))
        if self._classes is None:
            chosen = [draw(rng, self._perturbed[name], num_perturbed)]
        else:
            chosen = [draw_balanced(rng, self._classes[name], num_perturbed)]
        if num_controls and len(self._controls[name]):
            chosen.append(draw(rng, self._controls[name], num_controls))
        return np.concatenate(chosen)


def draw(rng: np.random.Generator, rows: Rows, num: int) -> Rows:
    """`num` rows, without replacement where there are more than that, else with."""
    return rng.choice(rows, size=num, replace=len(rows) <= num)


def by_class(rows: Rows, label: np.ndarray) -> list[Rows]:
    """The rows of each class that is there."""
    return [rows[label[rows] == code] for code in np.unique(label[rows])]


def draw_balanced(rng: np.random.Generator, classes: list[Rows], num: int) -> Rows:
    """`num` rows: a class drawn evenly, then a row of it."""
    chosen = rng.integers(len(classes), size=num)
    return np.array([classes[code][rng.integers(len(classes[code]))] for code in chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRows:
    """The rows of one context of a test: what the adapter sees; the perturbed ones are scored.

    Attributes:
        name: The unit (plate).
        perturbed: Rows whose labels the adapter never sees.
        controls: Rows of negative controls.
        short: How many images of a drawn class the plate did not have (label shift): they were
            drawn again among those it has.
    """

    name: str
    perturbed: Rows
    controls: Rows
    short: int = 0


def plain_contexts(
    name: str, perturbed: Rows, *, num_images: int | None, seed: int
) -> list[ContextRows]:
    """Shuffle a plate's images and cut them into contexts; a last incomplete one is left out."""
    if num_images is None:
        return [ContextRows(name=name, perturbed=perturbed, controls=perturbed[:0])]
    order = numpy_generator(seed, "contexts", name).permutation(perturbed)
    whole = len(order) // num_images * num_images
    return [
        ContextRows(name=name, perturbed=part, controls=perturbed[:0])
        for part in order[:whole].reshape(-1, num_images)
    ]


def label_shift_contexts(
    name: str,
    perturbed: Rows,
    label: np.ndarray,
    *,
    alpha: float,
    num_images: int,
    seed: int,
) -> list[ContextRows]:
    """Contexts whose class mix is drawn from a Dirichlet distribution (CS-ARM-BN, section 8.4).

    Shares ~ Dirichlet(alpha), counts ~ Multinomial(num_images); each draw is used once for every
    rotation of its counts through the classes, so that all classes are visited. A context always
    has `num_images` images: where a class has fewer than its count, all of them are taken and the
    rest is drawn again among them, and `short` says how many.

    Args:
        name: The plate.
        perturbed: Its scored rows.
        label: Class codes of these rows.
        alpha: Concentration; small = one class dominates.
        num_images: Images in a context.
        seed: Seed of the draw.
    """
    rng = numpy_generator(seed, "label-shift", name, alpha, num_images)
    classes = np.unique(label)
    pools = [perturbed[label == code] for code in classes]
    num_contexts = max(len(classes), len(perturbed) // num_images // len(classes) * len(classes))
    contexts: list[ContextRows] = []
    while len(contexts) < num_contexts:
        shares = rng.dirichlet(np.full(len(classes), alpha))
        counts = rng.multinomial(num_images, shares)
        for shift in range(len(classes)):
            parts, short = [], 0
            for pool, count in zip(pools, np.roll(counts, shift), strict=True):
                extra = max(0, int(count) - len(pool))
                parts.append(rng.choice(pool, size=int(count) - extra, replace=False))
                parts.append(rng.choice(pool, size=extra, replace=True))
                short += extra
            rows = np.concatenate(parts)
            contexts.append(
                ContextRows(name=name, perturbed=rows, controls=perturbed[:0], short=short)
            )
    return contexts[:num_contexts]


def few(rows: Rows, num: int | None, seed: int, *purpose: object) -> Rows:
    """At most `num` of the rows, drawn by the seed; all of them for None."""
    if num is None or num >= len(rows):
        return rows
    return np.sort(numpy_generator(derive(seed, *purpose), "few").permutation(rows)[:num])
