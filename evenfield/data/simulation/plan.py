"""Who lies where: the manifest of a simulated screen."""

from __future__ import annotations

import numpy as np
import pandas as pd

from evenfield.data.simulation.config import COLUMNS, ROWS, LayoutConfig, SimulationConfig, check
from evenfield.data.simulation.phenotypes import chosen
from evenfield.seeds import derive, numpy_generator

WELLS = tuple(
    f"{chr(65 + row)}{column + 1:02d}" for column in range(COLUMNS) for row in range(ROWS)
)
"""The wells of a 384-well plate, column by column: A01, B01, ..., P24."""

Content = tuple[str, str, str, float]  # control type, mechanism, compound, concentration in µM


def layout(config: SimulationConfig) -> pd.DataFrame:
    """The manifest: one row for each field, in the order source, batch, plate, well, site.

    Returns:
        Columns `Metadata_Source, Metadata_Batch, Metadata_Plate, Metadata_Well, Metadata_Site,
        Metadata_Compound, Metadata_Concentration` (µM), `Metadata_Treatment, Metadata_Label` (the
        mechanism; missing for DMSO), `Metadata_ControlType, Metadata_CellType`.

    Raises:
        InputError: The configuration is out of its range.
    """
    plan = check(config).layout
    chosen(plan.num_mechanisms)
    wells = [
        (source, batch, plate, well, content, batch_number)
        for source, batch, plate, batch_number in plates(plan)
        for well, content in _plate(config, source, batch, plate, batch_number)
    ]
    rows = [
        {
            "Metadata_Source": source,
            "Metadata_Batch": batch,
            "Metadata_Plate": plate,
            "Metadata_Well": well,
            "Metadata_Site": str(site + 1),
            "Metadata_Compound": compound,
            "Metadata_Concentration": dose,
            "Metadata_Treatment": f"{compound} @ {dose:g} uM" if dose else compound,
            "Metadata_Label": mechanism or None,
            "Metadata_ControlType": control,
            "Metadata_CellType": f"type-{number % plan.num_cell_types + 1}",
        }
        for source, batch, plate, well, (control, mechanism, compound, dose), number in wells
        for site in range(plan.num_sites)
    ]
    return pd.DataFrame(rows)


def plates(plan: LayoutConfig) -> list[tuple[str, str, str, int]]:
    """(source, batch, plate, number of the batch in its source) of every plate, names unique."""
    several = plan.num_sources > 1
    found = []
    for source in range(plan.num_sources):
        prefix = f"s{source + 1}-" if several else ""
        for batch in range(plan.num_batches):
            for plate in range(plan.num_plates):
                name = f"{prefix}b{batch + 1:02d}"
                found.append((f"source-{source + 1}", name, f"{name}-p{plate + 1}", batch))
    return found


def _plate(
    config: SimulationConfig, source: str, batch: str, plate: str, batch_number: int
) -> list[tuple[str, Content]]:
    """The occupied wells of one plate, in plate order."""
    plan = config.layout
    names = chosen(plan.num_mechanisms)
    contents = [
        treated(config, mechanism, compound, dose)
        for mechanism in names
        for compound in range(plan.num_compounds)
        for dose in plan.doses_um
        for _ in range(plan.replicates)
    ]
    where = (source, batch, plate)
    if plan.batch_confound and names:
        draw = numpy_generator(config.seed, "batch confound", *where)
        preferred = [n for i, n in enumerate(names) if i % plan.num_batches == batch_number]
        preferred = preferred or [names[batch_number % len(names)]]
        for index in np.flatnonzero(draw.random(len(contents)) < plan.batch_confound):
            compound = int(draw.integers(plan.num_compounds))
            mechanism = preferred[int(draw.integers(len(preferred)))]
            contents[index] = treated(config, mechanism, compound, contents[index][3])
    controls: list[Content] = [("negcon", "", "DMSO", 0.0)] * plan.num_dmso
    if plan.num_poscon:
        positive = treated(config, names[0], 0, max(plan.doses_um))
        controls += [("poscon", *positive[1:])] * plan.num_poscon

    total = len(contents) + len(controls)
    purpose = ("layout",) if plan.same_layout else ("layout", *where)
    draw = numpy_generator(config.seed, *purpose)
    spots = draw.choice(len(WELLS), size=total, replace=False)
    kept, free = np.sort(spots[: len(contents)]), spots[len(contents) :]
    # Confounded wells keep the plate's column order, which is the order of the mechanisms; the
    # others swap places among themselves.
    order = np.arange(len(contents))
    loose = np.flatnonzero(draw.random(len(contents)) >= plan.position_confound)
    order[loose] = draw.permutation(loose)
    occupied = [(int(kept[place]), contents[item]) for item, place in enumerate(order)]
    occupied += zip(map(int, free), controls, strict=True)
    return [(WELLS[spot], content) for spot, content in sorted(occupied)]


def treated(config: SimulationConfig, mechanism: str, compound: int, dose: float) -> Content:
    """A treated well's content; compounds are named after their mechanism's place in the list."""
    number = chosen(config.layout.num_mechanisms).index(mechanism)
    name = f"CMP-{number * config.layout.num_compounds + compound + 1:03d}"
    return ("trt", mechanism, name, float(dose))


def potency(config: SimulationConfig, compound: str) -> float:
    """The EC50 of a compound in µM."""
    draw = numpy_generator(config.seed, "ec50", compound).standard_normal()
    return config.mechanisms.ec50_um * float(np.exp(config.mechanisms.ec50_spread * draw))


def keys(config: SimulationConfig, manifest: pd.DataFrame, *, site: bool) -> np.ndarray:
    """One random key for each row: of its well, or of its field (int64, below 2^63)."""
    names = ["Metadata_Source", "Metadata_Plate", "Metadata_Well"] + ["Metadata_Site"] * site
    what = "field" if site else "well"
    return np.array(
        [derive(config.seed, what, *row) for row in manifest[names].itertuples(index=False)],
        dtype=np.int64,
    )
