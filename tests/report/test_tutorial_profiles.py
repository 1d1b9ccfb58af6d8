"""The tutorial about profiles runs as it stands."""

import re
import shlex
from pathlib import Path

import anndata
import numpy as np
import pytest

from evenfield.cli import run
from evenfield.data.profiles import read_profiles

PAGE = Path(__file__).parents[2] / "docs" / "tutorial-profiles.md"


@pytest.mark.filterwarnings("ignore::evenfield.errors.EvenfieldWarning")
def test_the_commands_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    verbs = []
    text = PAGE.read_text(encoding="utf-8")
    for kind, block in re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL):
        if kind == "python":
            exec(block, names)  # as in a notebook, later cells see earlier ones
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            assert program == "evenfield"
            assert run(arguments) == 0, line
            verbs.append(arguments[0])
    assert verbs == ["simulate", "train", "embed", "audit", *["correct"] * 4, "compare", "export"]
    wells = read_profiles("wells.parquet")
    page = Path("compare.html").read_text(encoding="utf-8")
    assert f"{len(wells)} wells" in page
    assert "data:image/jpeg" in page
    said = capsys.readouterr().out
    assert names["found"].sentence in said
    assert names["found"].sentence.replace("'", "&#39;") in Path("b04.html").read_text()
    standard = read_profiles("wells-standard.parquet")
    assert np.allclose(anndata.read_h5ad("wells.h5ad").X, standard.features, atol=1e-5)
    assert np.allclose(names["again"].features, names["corrected"].features)
    assert set(names["white"].metadata["Metadata_Batch"]) == {"b04"}
