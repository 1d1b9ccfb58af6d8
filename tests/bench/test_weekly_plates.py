"""The tutorial about plates that arrive every week runs as it stands."""

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from evenfield.cli import run

PAGE = (Path(__file__).parents[2] / "docs" / "weekly-plates.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:pairs by")
def test_the_commands_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = 0
    for kind, block in re.findall(r"```(sh|python)\n(.*?)```", PAGE, flags=re.DOTALL):
        if kind == "python":
            exec(block, {})
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            assert program == "evenfield"
            assert run([*arguments, "--quiet"] if arguments[0] != "simulate" else arguments) == 0
            commands += 1
    assert commands == 7
    assert "['b04-p2']" in capsys.readouterr().out
    for week, plates in ((1, {"b04-p1"}), (2, {"b04-p1", "b04-p2"})):
        table = pd.read_parquet(f"week{week}.parquet")
        assert set(table["Metadata_Plate"]) == plates
    arrivals = json.loads(Path("followed/adapted.json").read_text())["arrivals"]
    assert [arrival["plates"] for arrival in arrivals] == [["b04-p1"], ["b04-p2"]]
    assert all(arrival["watch"]["looks"][0]["drift"] is not None for arrival in arrivals)
