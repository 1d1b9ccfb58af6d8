import runpy
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_benchmark_of_a_jump_plate_runs_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    main = runpy.run_path(str(BENCHMARKS / "ingest_jump.py"))["main"]
    small = ["--wells", "2", "--size", "16", "--rounds", "1", "--workers", "1"]
    assert main([*small, "--folder", str(tmp_path)], record=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["as it is", "published illumination"]
    assert all("384 wells would take" in line for line in lines)
    assert not any(tmp_path.iterdir())
