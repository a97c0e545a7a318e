"""The benchmarks run; what they find is not asked here."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
from benchmarks import lies


def test_every_section_runs(tmp_path):
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for section in ("steps", "explanations", "evaluation"):
        found = pd.read_csv(tmp_path / f"{section}.csv")
        assert (found["ratio"] > 0).all()
        page = (tmp_path / f"{section}.md").read_text()
        assert all(f"| {row.what} |" in page for row in found.itertuples())
        assert (tmp_path / f"{section}.png").stat().st_size > 1000


def test_the_time_to_a_lie():
    given = {"model": "embedded", "data": "shapes:train", "limit": 60, "steps": 2, "check": False}
    rows = [lies.measured("found", given), lies.measured("by hand", given | {"lr": 1e-3})]
    assert [row["steps"] for row in rows] == [2, 2]
    assert all(row["core_minutes"] >= 0 and row["images"].startswith("12 ") for row in rows)
    told = lies.page(pd.DataFrame(rows))
    assert "| found | 2 |" in told
    assert "| by hand |" in told
