"""The table of networks that LRP covers says what happens."""

import csv
import importlib.util
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).parent.parent / "docs" / "results"
SHARES = ("arrived", "bias", "stabiliser", "other")


@pytest.fixture(scope="module")
def coverage():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RESULTS)
        page = RESULTS / "lrp_coverage.py"
        spec = importlib.util.spec_from_file_location("lrp_coverage", page)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(coverage):
    with coverage.TABLE.open(newline="") as file:
        return {row["network"]: row for row in csv.DictReader(file)}


def test_relevance_is_finite_and_accounted_for_on_every_network(coverage, table):
    assert table.keys() <= {name for name, _, _ in coverage.networks()}
    assert sum(name.startswith("timm:") for name in table) >= 60
    for name, row in table.items():
        if name == "timm:sequencer2d_s":
            assert "'lstm'" in row["lrp"]
            continue
        assert row["lrp"] == "finite"
        assert row["lrp-t"] != "WRONG"
        shares = [float(row[key]) for key in SHARES]
        assert sum(shares) == pytest.approx(1, abs=2e-3 * max(map(abs, shares)))


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_convnext"])
def test_networks_are_as_the_table_says(coverage, table, name):
    (made,) = (n for n in coverage.networks() if n[0] == name)
    with torch.random.fork_rng(), torch.no_grad():
        found = coverage.row(*made)
    shares, expected = ([float(row[key]) for key in SHARES[:-1]] for row in (found, table[name]))
    assert shares == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert all(found[key] == table[name][key] for key in found.keys() - SHARES)
