"""The page about profile metrics: its table is complete and its code runs."""

import re
from pathlib import Path

import numpy as np
from profile_cases import screen

from evenfield.metrics.base import PROFILE_METRICS
from evenfield.types import Profiles

PAGE = (Path(__file__).parents[2] / "docs" / "profile-metrics.md").read_text(encoding="utf-8")


def test_the_table_lists_every_metric_with_its_direction():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name: line for line in rows for name in re.findall(r"`([^`]+)`", line.split("|")[1])}
    assert set(named) == set(PROFILE_METRICS)
    for name, line in named.items():
        lower = "↓" in line.split("|")[1]
        assert lower == (PROFILE_METRICS[name].direction == "lower"), name
        assert line.count("|") - line.count("\\|") == 7


def test_the_code_runs_as_it_stands():
    table = screen(num_compounds=24, num_doses=2, num_labels=4)
    metadata = table.metadata.rename(
        columns={"Metadata_Label": "Metadata_MoA", "Metadata_ControlType": "Metadata_control_type"}
    )
    space = {"features": table.features, "names": table.names, "metadata": metadata, "np": np}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, space)
    assert isinstance(space["profiles"], Profiles)
    assert space["scores"]["nscb"].num == 48 * 3
    assert {"p_value", "corrected_p_value"} <= set(space["groups"])
