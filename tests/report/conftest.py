import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the fake results folder beside the tests

from fake_results import write_results


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def page(results) -> str:
    from evenfield.report.page import render

    return render(results)
