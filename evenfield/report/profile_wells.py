"""The wells of a comparison, on maps and on plates, and the data for the page's script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from evenfield.report.aligned import Aligned, levels
from evenfield.report.embedded import script_json
from evenfield.report.embedding import Palette
from evenfield.report.plane import Planes
from evenfield.report.plates import plate_format
from evenfield.report.profile_figures import limits_of, value_map, well_map
from evenfield.report.wells import Pictures, Value
from evenfield.report.words import natural
from evenfield.seeds import numpy_generator

MOST_MARKS = 5000
"""Wells of a map; of more, a fixed random sample is drawn."""


def well_section(
    aligned: Aligned,
    numbers: Sequence[Value],
    maps: Planes,
    seen: Pictures | None,
    *,
    seed: int,
    shown: tuple[str, str],
) -> dict[str, Any]:
    """What the two interactive sections show, and the data that their script draws from."""
    metadata = aligned.metadata
    # At random, lest the last plate covers the others; wells of a map come first.
    order = numpy_generator(seed, "draw").permutation(len(metadata))
    num = min(len(order), MOST_MARKS)
    told = metadata.iloc[order].reset_index(drop=True)
    control = told["Metadata_ControlType"] == "negcon"
    fields = _fields(told, aligned)
    names = [key for key in fields if key in ("plate", "batch", "source", "label", "wells")]
    by = next((key for key in ("batch", "plate", "label", "wells") if key in fields), "wells")
    tones = [fields[by]["tones"][code] for code in fields[by]["codes"][:num]]
    tables = {name: place for name, place in zip(aligned.names, maps.places, strict=True)}
    size = plate_format(told["Metadata_Well"])
    drawn = [_limited(value, order) for value in numbers]
    first = _pair(numbers)
    return {
        "num": num,
        "total": len(order),
        "fields": names,
        "by": by,
        "titles": {key: fields[key]["title"] for key in fields},
        "legend": fields[by]["legend"],
        "tables": list(aligned.names),
        "maps": [
            {
                "name": name,
                "drawing": well_map(
                    tables[name][order[:num]], tones, control[:num].tolist(), name=name, by=by
                ),
            }
            for name in shown
        ],
        "has_controls": bool(control.any()),
        "plates": sorted(set(told["Metadata_Plate"].astype(str)), key=natural),
        "values": [
            f"{value.name}{f' · {value.table}' if value.table else ''}" for value in numbers
        ],
        "grids": [
            {
                "index": index,
                "limits": [f"{bound:.3g}" for bound in limits_of(numbers[index].number)],
                "drawing": value_map(
                    metadata["Metadata_Well"],
                    numbers[index].number,
                    size,
                    limits_of(numbers[index].number),
                    name=numbers[index].name,
                ),
            }
            for index in first
        ],
        "data": script_json(
            {
                "wells": told["Metadata_Well"].astype(str).tolist(),
                "controls": control.astype(int).tolist(),
                "fields": fields,
                "places": {
                    name: np.rint(1000 * place[order[:num]]).astype(int).ravel().tolist()
                    for name, place in tables.items()
                },
                "values": drawn,
                "images": {
                    str(int(np.flatnonzero(order == row)[0])): uri
                    for row, uri in (seen.uris if seen is not None else {}).items()
                },
                "size": size,
                "num": num,
            }
        ),
    }


def _pair(numbers: Sequence[Value]) -> list[int]:
    """The two values that are drawn first: the same number before and after, if there is one."""
    for index, value in enumerate(numbers):
        for other in range(index + 1, len(numbers)):
            if numbers[other].name == value.name:
                return [index, other]
    return list(range(min(2, len(numbers))))


def _limited(value: Value, order: np.ndarray) -> dict[str, Any]:
    low, high = limits_of(value.number)
    shown = [float(f"{x:.3g}") if np.isfinite(x) else None for x in value.number[order].tolist()]
    return {"low": float(f"{low:.3g}"), "high": float(f"{high:.3g}"), "at": shown}


def _fields(told: pd.DataFrame, aligned: Aligned) -> dict[str, Any]:
    """What a well is, by field: names, a code for each well, a colour for each name."""
    found: dict[str, Any] = {}
    places = levels(told)
    texts = {
        "batch": told["Metadata_Batch"],
        "plate": told["Metadata_Plate"],
        "source": told["Metadata_Source"],
        "label": told["Metadata_Label"],
        "treatment": told["Metadata_Treatment"],
        "wells": told["Metadata_ControlType"].map(
            {"negcon": "negative control", "poscon": "positive control", "empty": "empty"}
        ),
    }
    for key, column in texts.items():
        words = column.fillna("treated" if key == "wells" else "").astype(str)
        names = sorted(set(words), key=natural)
        if key in ("batch", "source") and f"Metadata_{key.title()}" not in places:
            continue
        if key != "plate" and len(names) < 2:
            continue
        palette = Palette.of(words[words != ""])
        code = {name: index for index, name in enumerate(names)}
        title = aligned.called.get("Metadata_Label", "label") if key == "label" else key
        found[key] = {
            "title": title.removeprefix("Metadata_"),
            "names": [name or "none" for name in names],
            "codes": [code[word] for word in words],
            "tones": [palette.code(name) for name in names],
            "legend": palette.legend(set(names) - {""}),
        }
    return found
