"""A manifest in codes: what samplers, splits and judges work on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from evenfield.data.manifest import Roles
from evenfield.errors import InputError

WELL = ["Metadata_Source", "Metadata_Plate", "Metadata_Well"]
PARTS = ("train", "val", "test", "id_val", "id_test")
"""Who trains; who selects and who is judged on new units (`val`, `test`), and on those of the
training (`id_val`, `id_test`): the words of WILDS."""


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
        part: (n,) what a benchmark's own column says of each row (one of `PARTS`, or "" for a row
            that takes no part); None where no column was asked for.
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
    part: np.ndarray | None = None

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
    column: str | None = None,
) -> Units:
    """Code a manifest by its roles.

    Negative controls and empty wells have no label, whatever the table says. A benchmark that
    counts untreated wells as a class (RxRx1-WILDS does) marks them `trt` at the door, with the
    reader's setting `negative_is_class`: then they are scored, and no adapter gets them as
    controls.

    Args:
        manifest: A screen's manifest.
        roles: Which column plays which role.
        classes: The class names of a trained model; None = those found here.
        exclude: Labels that count as unknown.
        column: The column that says who trains and who is judged (`SplitConfig.column`).

    Raises:
        InputError: A role's column or `column` is missing, an excluded label does not exist, or
            `column` holds a word that is none of `PARTS`.
    """
    for role in ("label", "control", "context", "domain", "holdout"):
        played = getattr(roles, role)
        if played not in manifest:
            raise InputError(
                f"the manifest has no column {played!r}, which plays the role {role!r}",
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
        part=None if column is None else _parts(manifest, column),
    )


def _codes(column: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    text = column.astype("string").fillna("")
    names = tuple(sorted(set(text)))
    place = {name: number for number, name in enumerate(names)}
    return text.map(place).to_numpy(dtype=np.int64), names


def _parts(manifest: pd.DataFrame, column: str) -> np.ndarray:
    if column not in manifest:
        raise InputError(
            f"the manifest has no column {column!r} to split by",
            fix=f"name one of: {', '.join(manifest.columns)}; or leave `split.column` away",
        )
    part = manifest[column].astype("string").fillna("").to_numpy(dtype=str)
    unknown = sorted(set(part) - {"", *PARTS})
    if unknown:
        raise InputError(
            f"{column} holds {str(unknown[0])!r}, which is no part of a split",
            fix=f"write one of {', '.join(PARTS)}, or nothing for rows that take no part",
        )
    return part
