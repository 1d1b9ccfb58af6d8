"""What mechanisms do to cells: the parameters of a cell and their values at full effect.

A cell is a row of phenotype values. DMSO cells scatter around the baseline; a mechanism moves some
of the values to its own targets, `effect` in [0, 1] of the way. The mechanisms follow what is
described for reference compounds of Cell Painting and BBBC021 (Ljosa et al. 2013, Bray et al. 2016)
in kind, not in measured size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evenfield.errors import InputError


@dataclass(frozen=True, slots=True)
class Trait:
    """One parameter of a cell.

    Attributes:
        base: Value of an untreated cell.
        spread: Standard deviation between untreated cells, relative to `base` or, for a base of 0,
            absolute.
        what: What the parameter means.
    """

    base: float
    spread: float
    what: str


TRAITS: dict[str, Trait] = {
    "count": Trait(1.0, 0.0, "number of cells, relative"),
    "size": Trait(1.0, 0.0, "radius of the cell, relative (its spread is the cells' own)"),
    "elongation": Trait(1.25, 0.10, "long over short axis"),
    "spikes": Trait(0.06, 0.5, "depth of the three- and five-fold lobes of the outline"),
    "nucleus": Trait(0.46, 0.07, "radius of the nucleus over that of the cell"),
    "nucleus_elongation": Trait(1.18, 0.06, "long over short axis of the nucleus"),
    "second_nucleus": Trait(0.03, 0.0, "probability of a second, full nucleus"),
    "fragments": Trait(0.0, 0.0, "0: one nucleus; 1: broken into three bright pieces"),
    "chromatin": Trait(0.15, 0.3, "contrast of the texture in the nucleus"),
    "nucleoli": Trait(0.9, 0.15, "brightness of the nucleoli in RNA"),
    "nucleolus_size": Trait(0.30, 0.1, "radius of a nucleolus over that of the nucleus"),
    "nucleoli_merged": Trait(0.0, 0.0, "0: three nucleoli apart; 1: one in the centre"),
    "er_ring": Trait(0.55, 0.1, "concentration of the ER around the nucleus"),
    "er_texture": Trait(0.25, 0.2, "contrast of the ER's texture"),
    "er_period_um": Trait(10.0, 0.1, "period of the ER's texture"),
    "cortex": Trait(0.6, 0.15, "actin and membrane at the cell's edge"),
    "fibres": Trait(0.35, 0.3, "contrast of stress fibres along the cell"),
    "golgi": Trait(1.0, 0.15, "brightness of the compact Golgi beside the nucleus"),
    "granules": Trait(0.15, 0.3, "contrast of granules in AGP"),
    "vacuoles": Trait(0.0, 0.0, "depth of dark holes in the cytoplasm"),
    "mito_network": Trait(0.65, 0.1, "1: filaments; 0: dots"),
    "mito_contrast": Trait(0.7, 0.1, "contrast of the mitochondria against the cytoplasm"),
    "mito_ring": Trait(0.35, 0.15, "concentration of the mitochondria around the nucleus"),
    "mito_period_um": Trait(11.0, 0.1, "distance between mitochondria"),
}

PHENOTYPE = tuple(TRAITS)
"""The order of the parameters in tensors."""

Grade = Literal["easy", "medium", "hard"]


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A mechanism of action.

    Attributes:
        grade: How hard it is to tell from DMSO and from the others.
        targets: Values of the phenotype at full effect; all others stay at the baseline.
    """

    grade: Grade
    targets: dict[str, float]


MECHANISMS: dict[str, Mechanism] = {
    "tubulin destabiliser": Mechanism(
        "easy",
        {"second_nucleus": 0.95, "nucleus": 0.36, "elongation": 1.05, "er_ring": 0.8, "count": 0.9},
    ),
    "Golgi disruptor": Mechanism(
        "medium", {"golgi": 0.0, "granules": 1.9, "cortex": 0.1, "fibres": 0.1, "er_ring": 0.9}
    ),
    "mitochondrial uncoupler": Mechanism(
        "easy", {"mito_network": 0.0, "mito_contrast": 1.15, "mito_ring": 0.9}
    ),
    "transcription inhibitor": Mechanism(
        "medium",
        {"nucleoli_merged": 1.0, "nucleolus_size": 0.46, "nucleoli": 1.5, "nucleus": 0.42},
    ),
    "actin disruptor": Mechanism(
        "easy", {"spikes": 0.44, "cortex": 0.05, "fibres": 0.0, "granules": 0.35, "size": 0.92}
    ),
    "ER stress": Mechanism("medium", {"er_texture": 0.95, "er_period_um": 13.0, "er_ring": 0.0}),
    "DNA damage": Mechanism(
        "easy", {"size": 1.22, "nucleus": 0.56, "count": 0.7, "chromatin": 0.35}
    ),
    "kinase inhibitor": Mechanism(
        "medium",
        {
            "elongation": 2.9,
            "nucleus_elongation": 2.2,
            "fibres": 1.1,
            "cortex": 0.3,
            "er_ring": 0.25,
            "mito_ring": 0.0,
        },
    ),
    "apoptosis inducer": Mechanism(
        "easy", {"fragments": 1.0, "size": 0.8, "count": 0.75, "mito_contrast": 0.4}
    ),
    "lysosome swelling": Mechanism("medium", {"vacuoles": 0.9, "granules": 0.3}),
    "mitochondrial fusion": Mechanism(
        "hard", {"mito_network": 1.0, "mito_period_um": 15.0, "mito_ring": 0.1}
    ),
    "chromatin modifier": Mechanism("hard", {"chromatin": 0.6, "nucleus": 0.50, "nucleoli": 0.5}),
}


def chosen(num_mechanisms: int) -> tuple[str, ...]:
    """The names of the first mechanisms.

    Raises:
        InputError: More are asked for than there are.
    """
    if num_mechanisms > len(MECHANISMS):
        raise InputError(
            f"layout.num_mechanisms is {num_mechanisms}, and {len(MECHANISMS)} are known",
            fix=f"ask for at most {len(MECHANISMS)}",
        )
    return tuple(MECHANISMS)[:num_mechanisms]


def hill(dose_um: float, ec50_um: float, coefficient: float) -> float:
    """Fraction of the full effect at a dose (Hill 1910): d^h / (d^h + EC50^h).

    >>> hill(1.0, 1.0, 2.0), hill(0.0, 1.0, 2.0)
    (0.5, 0.0)
    """
    if dose_um <= 0:
        return 0.0
    return 1.0 / (1.0 + (ec50_um / dose_um) ** coefficient)
