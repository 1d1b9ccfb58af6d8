"""The doors stay light: imports, help texts and what they load."""

import subprocess
import sys

import pytest

from evenfield.cli import VERBS, run


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after some code."""
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_evenfield_loads_nothing_heavy():
    assert not loaded_by("import evenfield") & {"torch", "numpy", "pandas", "matplotlib", "sklearn"}


@pytest.mark.parametrize("module", ["report", "metrics", "report.page", "report.tables"])
def test_report_and_metrics_load_no_torch(module):
    assert "torch" not in loaded_by(f"import evenfield.{module}")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_no_torch(verb):
    code = f"""
from evenfield.cli import run
try:
    code = run({[*verb.split(), "--help"]!r})
except SystemExit as stop:
    code = stop.code
assert code == 0, code
import os; os.write(1, b"\\n")
"""
    script = f"import sys\n{code}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert {"torch", "pandas"}.isdisjoint(done.stderr.split())
    assert (verb or "usage") in done.stdout


def test_every_verb_has_its_twin_in_the_api():
    from evenfield import api

    for verb in VERBS:
        assert callable(getattr(api, verb))


def test_unknown_verb_and_no_verb(capsys):
    assert run(["trian"]) == 2
    assert "there is no verb 'trian'" in capsys.readouterr().err
    assert run([]) == 2
    assert run(["--version"]) == 0


def test_methods_of_the_help_are_those_of_the_registry():
    from evenfield.adapt import ADAPTERS
    from evenfield.cli import _files
    from evenfield.data.sources import SOURCES
    from evenfield.methods import METHODS

    for package, registry in (
        ("adapt", ADAPTERS),
        ("methods", METHODS),
        ("data/sources", SOURCES),
    ):
        assert _files(package) == sorted(registry)


def test_presets_of_the_help_are_those_of_the_bench():
    from evenfield.bench.presets import PRESETS
    from evenfield.cli import PRESET_NAMES

    assert sorted(PRESETS) == sorted(PRESET_NAMES)
