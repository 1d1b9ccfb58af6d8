# Two commands for a fresh machine with Python 3.11 to 3.13: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs clean

demo: $(VENV)/run.stamp
	$(BIN)/evenfield demo demo

test: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/test.stamp
	$(BIN)/mkdocs build --strict --site-dir site

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: $(BIN)/python pyproject.toml constraints-run.txt
	$(BIN)/python -m pip install --quiet --constraint constraints-run.txt --editable .
	touch $@

$(VENV)/test.stamp: $(BIN)/python pyproject.toml constraints-test.txt
	$(BIN)/python -m pip install --quiet --constraint constraints-test.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo site
