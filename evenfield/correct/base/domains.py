"""Correctors that learn one map for each domain (a plate, a batch) from its reference rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from evenfield.correct.base.columns import Rows, domain_rows, reference_rows
from evenfield.correct.base.contract import Corrector, State, Unseen
from evenfield.data.roles import some
from evenfield.errors import InputError
from evenfield.types import Profiles

_UNIT = "domain."


class DomainCorrector(Corrector):
    """A corrector with one map for each domain, learned from the domain's reference rows.

    A subclass says what all reference rows together teach (`pool`), what one domain's teach given
    that (`unit`), and how a row is moved (`move`). At a domain that `fit` never saw, `unit` learns
    from that domain's own reference rows in the table that is being transformed (give the whole
    plate); a domain without any is refused, in `fit` as in `transform`.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Corrector.Config):
        """The roles.

        Attributes:
            domain: The column of the unit that gets a map of its own; none = all rows are one.
            control: The column that says which rows are negative controls.
            reference: Whether the `controls` teach the map, or `all` rows (treated ones, too).
        """

        domain: str | None = "Metadata_Plate"
        control: str = "Metadata_ControlType"
        reference: Literal["controls", "all"] = "controls"

    @property
    def unseen(self) -> Unseen:
        """The new domain's own reference rows; nothing if all rows are one domain."""
        if self.config.domain is None:
            return "same"
        return "controls" if self.config.reference == "controls" else "rows"

    @abstractmethod
    def pool(self, references: Sequence[Float[np.ndarray, "m d"]], names: tuple[str, ...]) -> State:
        """What the reference rows of all domains teach together."""

    @abstractmethod
    def unit(self, pooled: State, reference: Float[np.ndarray, "m d"]) -> State:
        """What one domain's reference rows teach; equal shapes for every domain."""

    @abstractmethod
    def move(self, pooled: State, unit: State, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Rows (n, d) of one domain, corrected: (n, e)."""

    def output_names(self, pooled: State, names: tuple[str, ...]) -> tuple[str, ...]:
        """The names of the e corrected features."""
        del pooled
        return names

    def announce(self, units: dict[str, State], names: tuple[str, ...]) -> None:
        """Warn, once a table, of fallbacks that were taken in `unit`."""
        del units, names

    def learn(self, profiles: Profiles) -> State:
        """`pool`, then `unit` for every domain; arrays of domains are stacked."""
        domains = domain_rows(profiles, self.config.domain)
        references = self._references(profiles, domains)
        pooled = self.pool(list(references.values()), profiles.names)
        units = {name: self.unit(pooled, x) for name, x in references.items()}
        self.announce(units, profiles.names)
        first = next(iter(units.values()))
        stacked = {
            _UNIT + key: np.stack([unit[key] for unit in units.values()]) for key in sorted(first)
        }
        return {**pooled, **stacked, "domains": np.array(list(units), dtype=np.str_)}

    def map(self, profiles: Profiles) -> Profiles:
        """`move` for the rows of each domain."""
        pooled = {key: value for key, value in self.state.items() if not key.startswith(_UNIT)}
        domains = domain_rows(profiles, self.config.domain)
        place = {str(name): index for index, name in enumerate(self.state["domains"])}
        foreign = {name: rows for name, rows in domains.items() if name not in place}
        fresh = {
            name: self.unit(pooled, x) for name, x in self._references(profiles, foreign).items()
        }
        if fresh:
            self.announce(fresh, profiles.names)
        names = self.output_names(pooled, profiles.names)
        out = np.empty((len(profiles), len(names)), dtype=profiles.features.dtype)
        for name, rows in domains.items():
            unit = fresh[name] if name in fresh else self._stored(place[name])
            out[rows] = self.move(pooled, unit, profiles.features[rows])
        return profiles.with_features(out, names)

    def _stored(self, index: int) -> State:
        return {
            key.removeprefix(_UNIT): value[index]
            for key, value in self.state.items()
            if key.startswith(_UNIT)
        }

    def _references(self, profiles: Profiles, domains: dict[str, Rows]) -> dict[str, np.ndarray]:
        if not domains:
            return {}
        reference = self.config.reference
        wanted = reference_rows(profiles, reference, self.config.control)
        found = {name: profiles.features[rows][wanted[rows]] for name, rows in domains.items()}
        empty = [name for name, x in found.items() if not len(x)]
        if empty:
            where = f"{len(empty)} domain(s) ({some(empty, 4)})" if empty != [""] else "the table"
            raise InputError(
                f"{self.name}: {where} have no negative control in {self.config.control}: "
                "there is nothing to learn their map from",
                fix="leave these rows out, or set reference='all' to learn from all rows",
            )
        return found
