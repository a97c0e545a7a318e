PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint docs bench pictures results

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

demo: setup
	$(BIN)/trompe demo

# One thread per worker: two workers on two cores, and the same numbers on any machine.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Warnings are errors; the pages open from disk.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean

# Nothing else should run meanwhile; it takes more than an hour of one core.
bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

pictures: setup
	$(BIN)/python docs/pictures.py

# The tables of docs/results from the rows beside them; nothing is run again.
results: setup
	$(BIN)/python docs/results/tables.py
