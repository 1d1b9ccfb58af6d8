"""Mini-batches with a structure: equally many images of some domains, chunks, one cell type.

Like every sampler a pure function of (seed, step). A draw costs a few array operations of the size
of the batch, however many images and groups there are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from evenfield.data.sampler import Rows, Sampler
from evenfield.errors import EvenfieldWarning, InputError
from evenfield.seeds import numpy_generator

Codes = Int[np.ndarray, " N"]


class Groups:
    """Rows by group, in one array, so that a draw from many groups is one draw.

    Args:
        rows: Labelled rows.
        code: (N,) group codes of all rows of the manifest.
        label: (N,) class codes of all rows; given, the classes of a group are drawn evenly, and
            rows within a class with replacement.

    Raises:
        InputError: There is no row.
    """

    def __init__(self, rows: Rows, code: Codes, label: Codes | None = None) -> None:
        if len(rows) == 0:
            raise InputError(
                "there is no labelled training image",
                fix="check the label role and the split (`evenfield audit`)",
            )
        rows = np.asarray(rows, dtype=np.int64)
        kind = np.zeros_like(rows) if label is None else label[rows]
        self._rows = rows[np.lexsort((kind, code[rows]))]
        # A cell holds the rows of one class in one group; without classes it is the group.
        cells, self._size = np.unique(np.stack([code[rows], kind]), axis=1, return_counts=True)
        self._start = np.cumsum(self._size) - self._size
        self._least = int(self._size.min())
        _, self._first, self._num_cells = np.unique(cells[0], return_index=True, return_counts=True)
        self._by_class = label is not None
        self.num = len(self._first)

    def draw(self, rng: np.random.Generator, groups: Int[np.ndarray, " g"], each: int) -> Rows:
        """`each` rows of every group named, in this order.

        No row comes twice unless a group has no more of them than are asked for; a group named
        twice is asked for twice as many.
        """
        first = self._first[groups]
        if self._by_class:
            cell = first.repeat(each) + below(rng, self._num_cells[groups].repeat(each))
            return self._rows[self._start[cell] + below(rng, self._size[cell])]
        start, size = self._start[first].repeat(each), self._size[first].repeat(each)
        place = start + below(rng, size)
        free = None  # all of the batch
        if 2 * len(place) > self._least:
            free = self._fill_crowded(rng, groups, each, groups.repeat(each), place)

        def twice() -> Int[np.ndarray, " m"]:
            return repeated(place) if free is None else free[repeated(place[free])]

        while len(again := twice()):
            place[again] = start[again] + below(rng, size[again])
        return self._rows[place]

    def _fill_crowded(
        self,
        rng: np.random.Generator,
        groups: Int[np.ndarray, " g"],
        each: int,
        group: Int[np.ndarray, " n"],
        place: Int[np.ndarray, " n"],
    ) -> Int[np.ndarray, " m"]:
        """Set the places in groups of which much is taken; where in the batch the others stand.

        There, drawing again what came twice would take long.
        """
        names, times = np.unique(groups, return_counts=True)
        crowded = names[2 * times * each > self._size[self._first[names]]]
        for name in crowded:
            chosen = np.flatnonzero(group == name)
            start, size = (values[self._first[name]] for values in (self._start, self._size))
            enough = size > len(chosen)
            picked = rng.permutation(size) if enough else rng.integers(0, size, len(chosen))
            place[chosen] = start + picked[: len(chosen)]
        return np.flatnonzero(~np.isin(group, crowded))


def below(rng: np.random.Generator, high: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Whole numbers from 0 to below each bound.

    Five times as quick as `integers`, which rejects for each bound; at most 2^-53 from even.
    """
    return (rng.random(len(high)) * high).astype(np.int64)


def repeated(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Where a value stands that stood before, in no particular order.

    Drawing these again until none is left is a draw without replacement, evenly over all orders.

    >>> repeated(np.array([5, 7, 5, 5])).tolist()
    [2, 3]
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return order[1:][ordered[1:] == ordered[:-1]]


class Domains(Sampler):
    """Equally many images of each of n domains (the group loader of WILDS, arXiv 2012.07421).

    The domains are drawn uniformly, not by their size; a batch holds floor(size / n) images of
    each, one domain after the other.

    Args:
        rows: Labelled rows.
        domain: (N,) domain codes of all rows of the manifest.
        size: Images in a batch.
        num_domains: Domains in a batch.
        distinct: Whether these are different; all that there are (warned) if there are fewer.
        seed: The run's seed.
        label: (N,) class codes of all rows; given, the classes of a domain are drawn evenly.
        among: Whose rows these are, for messages.

    Raises:
        InputError: There is no row, or there are fewer images in a batch than domains.
    """

    def __init__(
        self,
        rows: Rows,
        domain: Codes,
        *,
        size: int,
        num_domains: int,
        seed: int,
        distinct: bool = True,
        label: Codes | None = None,
        among: str = "the training images",
    ) -> None:
        self._groups = Groups(rows, domain, label)
        if distinct and num_domains > self._groups.num:
            warnings.warn(
                f"a batch holds {self._groups.num} domains, not {num_domains}: {among} hold no "
                "more; each gives more images instead",
                EvenfieldWarning,
                stacklevel=2,
            )
            num_domains = self._groups.num
        if not 1 <= num_domains <= size:
            raise InputError(
                f"a batch of {size} images cannot hold {num_domains} domains",
                fix="set --train.num-perturbed to a multiple of --train.num-domains",
            )
        self._num, self._each = num_domains, size // num_domains
        self._distinct, self._seed = distinct, seed
        self.passes_per_epoch = max(1, len(rows) // (self._num * self._each))

    def rows(self, step: int) -> Rows:
        """The rows of one batch."""
        rng = numpy_generator(self._seed, "domains", step)
        if self._distinct:
            names = rng.permutation(self._groups.num)[: self._num]
        else:
            names = rng.integers(0, self._groups.num, self._num)
        return self._groups.draw(rng, names, self._each)


class Chunks(Sampler):
    """Chunks of images of one domain each; its domain is drawn uniformly for every chunk.

    Two chunks of a batch may be of one domain; their images differ while it has enough of them.

    Args:
        rows: Labelled rows.
        domain: (N,) domain codes of all rows of the manifest.
        size: Images in a batch; what is left of whole chunks is left out.
        chunk: Images of a chunk, which stand together.
        seed: The run's seed.
        label: (N,) class codes of all rows; given, the classes of a domain are drawn evenly.

    Raises:
        InputError: There is no row, or a chunk is larger than the batch.
    """

    def __init__(
        self,
        rows: Rows,
        domain: Codes,
        *,
        size: int,
        chunk: int,
        seed: int,
        label: Codes | None = None,
    ) -> None:
        if not 1 <= chunk <= size:
            raise InputError(
                f"a batch of {size} images cannot hold chunks of {chunk}",
                fix="set --train.num-perturbed to a multiple of --train.chunk",
            )
        self._groups = Groups(rows, domain, label)
        self._num, self._chunk, self._seed = size // chunk, chunk, seed
        self.passes_per_epoch = max(1, len(rows) // (self._num * chunk))

    def rows(self, step: int) -> Rows:
        """The rows of one batch."""
        rng = numpy_generator(self._seed, "chunks", step)
        return self._groups.draw(rng, rng.integers(0, self._groups.num, self._num), self._chunk)


class Pure(Sampler):
    """Batches whose images share one value of a column: each value has a sampler of its own.

    An epoch holds the passes of all of them in an order drawn for that epoch, so that a value
    comes up as often as its images fill batches.

    Args:
        parts: One sampler for each value.
        seed: The run's seed.
    """

    def __init__(self, parts: Sequence[Sampler], *, seed: int) -> None:
        self._parts, self._seed = parts, seed
        self._passes = np.array([part.passes_per_epoch for part in parts])
        self.passes_per_epoch = int(self._passes.sum())
        self._epoch = -1
        self._order = self._turn = np.empty(0, np.int64)

    def rows(self, step: int) -> Rows:
        """The rows of one batch."""
        epoch, place = divmod(step, self.passes_per_epoch)
        if epoch != self._epoch:
            named = np.repeat(np.arange(len(self._parts)), self._passes)
            self._order = numpy_generator(self._seed, "pure", epoch).permutation(named)
            self._turn = np.empty_like(named)
            turns = np.concatenate([np.arange(num) for num in self._passes])
            self._turn[np.argsort(self._order, kind="stable")] = turns
            self._epoch = epoch
        part = self._order[place]
        return self._parts[part].rows(int(epoch * self._passes[part] + self._turn[place]))
