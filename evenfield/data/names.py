"""How wells, identifiers and controls are called: every spelling of the field, one of ours.

Column names, wells and control vocabularies: pycytominer, JUMP-CP, RxRx1 and mantispy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from evenfield.errors import InputError

CONTROL_TYPES = ("negcon", "poscon", "trt", "empty")
NEGCON = "negcon"

_CONTROL_COLUMNS = ("Metadata_pert_type", "Metadata_control_type", "pert_type", "control_type",
                    "well_type", "Metadata_well_type", "Metadata_Control_Type",
                    "Metadata_Control")  # fmt: skip
_CONTROL_WORDS = {
    "negcon": "negcon",
    "negative_control": "negcon",
    "negative control": "negcon",
    "poscon": "poscon",
    "positive_control": "poscon",
    "positive control": "poscon",
    "trt": "trt",
    "treatment": "trt",
    "treated": "trt",
    "": "trt",
    "na": "trt",
    "nan": "trt",
    "none": "trt",
    "empty": "empty",
    "true": "negcon",
    "false": "trt",
}
_MISSING = {"", "nan", "NaN", "NA", "N/A", "None", "none", "<NA>", "NaT"}
_WELL = re.compile(r"\s*([A-Za-z]{1,2})[_/\-\s]?0*([0-9]{1,2})\s*")
_LAST_ROW, _LAST_COLUMN = 32, 48  # AF48: the last well of a 1,536-well plate
_POSITION = re.compile(r"x[0-9]+_y[0-9]+")


def normalise_well(text: object) -> str:
    """The name of a well as row letters and two digits of a column.

    A slide of tissue has no wells; there the position of a patch stands in for one (`x64_y128`).

    >>> [normalise_well(name) for name in ("a1", "B_3", "A/1", "h012", "AF48", "x64_y128")]
    ['A01', 'B03', 'A01', 'H12', 'AF48', 'x64_y128']

    Raises:
        InputError: The text names no well of a plate with up to 1,536 wells (A01 to AF48).
    """
    if is_position(text):
        return str(text)
    match = _WELL.fullmatch(str(text))
    if match:
        letters, column = match[1].upper(), int(match[2])
        row = ord(letters[-1]) - 64 + (26 * (ord(letters[0]) - 64) if len(letters) == 2 else 0)
        if row <= _LAST_ROW and 1 <= column <= _LAST_COLUMN:
            return f"{letters}{column:02d}"
    raise InputError(
        f"{str(text)!r} is not the name of a well",
        fix="name wells by row letter and column number, from A01 to AF48",
    )


def is_well(text: object) -> bool:
    """Whether `normalise_well` understands a name."""
    try:
        normalise_well(text)
    except InputError:
        return False
    return True


def is_position(text: object) -> bool:
    """Whether a name is the position of a patch on a slide, as `x64_y128` (pixels).

    >>> is_position("x64_y128"), is_position("A01")
    (True, False)
    """
    return _POSITION.fullmatch(str(text)) is not None


def as_text(values: Iterable[object]) -> list[str]:
    """Identifiers as strings; what is missing becomes "", and 3.0 "3" (an id is never a float).

    >>> as_text([7, 7.0, "007", None, float("nan")])
    ['7', '7', '007', '', '']
    """

    def one(value: object) -> str:
        if isinstance(value, float | np.floating) and float(value).is_integer():
            return str(int(value))
        text = str(value).strip()
        return "" if value is None or text in _MISSING else text

    return [one(value) for value in values]


def map_control(value: object) -> str:
    """A control word of any known vocabulary as negcon, poscon, trt or empty.

    Words that are not known are returned as they are; `check_manifest` names them.

    >>> [map_control(v) for v in ("poscon_cp", "negative_control", True, "NA", "vehicle")]
    ['poscon', 'negcon', 'negcon', 'trt', 'vehicle']
    """
    text = as_text([value])[0]
    word = text.lower()
    if word in _CONTROL_WORDS:
        return _CONTROL_WORDS[word]
    for prefix in ("negcon", "poscon"):
        if word.startswith(prefix):
            return prefix
    return text


def has_controls(table: pd.DataFrame) -> bool:
    """Whether any known column tells controls from treatments."""
    return "Metadata_ControlType" in table or any(name in table for name in _CONTROL_COLUMNS)


def control_types(table: pd.DataFrame) -> list[str] | None:
    """The control type of each row from whichever vocabulary the table uses; None if none."""
    if "Metadata_ControlType" in table:
        return [map_control(value) for value in table["Metadata_ControlType"]]
    found = [column for column in _CONTROL_COLUMNS if column in table]
    if not found:
        return None
    # CPJUMP1 says "control" in one column and which kind in another: the kind wins.
    answer = ["trt"] * len(table)
    for column in found:
        words = [map_control(value) for value in table[column]]
        answer = [
            new if new != "trt" and old in ("trt", "control") else old
            for old, new in zip(answer, words, strict=True)
        ]
    return answer
