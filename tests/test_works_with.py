"""The table of what works with what says what happens."""

import csv
import importlib.util
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "results" / "works_with.py"


@pytest.fixture(scope="module")
def works_with():
    spec = importlib.util.spec_from_file_location("works_with", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(works_with):
    with works_with.TABLE.open(newline="") as file:
        return {(r["model"], r["explainer"]): r["outcome"] for r in csv.DictReader(file)}


def test_nothing_is_wrong(works_with, table):
    assert {model for model, _ in table} == {*works_with.WRAPPED, *works_with.NETWORKS}
    assert "WRONG" not in table.values()
    assert {table["plain", explainer] for _, explainer in table} == {works_with.WORKS}


def test_wrapped_models_are_as_the_table_says(works_with, table):
    quick = [name for name in works_with.WRAPPED if name != "torch.compile"]
    for row in works_with.rows(works_with.wrapped(*quick)):
        assert table[row["model"], row["explainer"]] == row["outcome"], row


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "timm:efficientnet_lite0"])
def test_networks_are_as_the_table_says(works_with, table, name):
    for row in works_with.rows({name: works_with.NETWORKS[name]}):
        assert table[name, row["explainer"]] == row["outcome"], row
