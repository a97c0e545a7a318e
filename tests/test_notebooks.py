"""The notebooks run from top to bottom; what they show was shown by such a run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))


def kinds(cell):
    """What a cell put out, by kind; numbers and pictures may differ between machines."""
    outputs = [o for o in cell.get("outputs", ()) if o.get("name") != "stderr"]
    return [sorted(o["data"]) if "data" in o else o["output_type"] for o in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_it_showed(path, tmp_path):
    assert path.stat().st_size < 200_000
    stored = nbformat.read(path, 4)
    nbformat.validate(stored)
    run = nbformat.read(path, 4)
    NotebookClient(run, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [kinds(cell) for cell in run.cells] == [kinds(cell) for cell in stored.cells]
    assert any("image/png" in kind for cell in stored.cells for kind in kinds(cell))
