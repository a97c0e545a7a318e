PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --constraint constraints.txt

.PHONY: setup demo package test fuzz lint docs bench pictures results

setup: $(VENV)/.ready

# What trompe itself needs; all else is for its tests and its documentation.
$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt uv
	$(INSTALL) --python $(BIN)/python --editable .
	touch $@

$(VENV)/.ready: $(VENV)/.base
	$(INSTALL) --python $(BIN)/python --editable ".[dev,docs]"
	touch $@

demo: $(VENV)/.base
	$(BIN)/trompe demo

# From the sdist to a wheel to an environment that holds nothing else, where a short demo runs.
package: $(VENV)/.base
	rm -rf build/dist build/empty
	$(BIN)/uv build --quiet --out-dir build/dist
	$(BIN)/uv venv --quiet --python $(BIN)/python build/empty
	$(INSTALL) --python build/empty/bin/python build/dist/*.whl
	cd build/empty && bin/trompe fool --model embedded --data shapes:train --limit 16 \
	    --eval-data shapes:validation --eval-limit 8 --lr 1e-3 --steps 2 --quiet --out run
	rm -rf build/empty

# One thread per worker: two workers on two cores, and the same numbers on any machine.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

# About ten minutes of one core; counts outcomes in docs/results/fuzz.csv.
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz 100000

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
