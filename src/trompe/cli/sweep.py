"""``trompe fool --sweep``: what stands in one run's place when there are many."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from trompe.base.progress import shown
from trompe.cli.app import complain
from trompe.cli.cells import carried_out
from trompe.cli.next_steps import after_sweep, show_next
from trompe.cli.tables import show_comparison
from trompe.errors import TrompeError
from trompe.experiments import is_finished, run_cells
from trompe.experiments.sweep import axes, points
from trompe.report.compare import compare, write_comparison
from trompe.tuning.job import FoolJob
from trompe.tuning.plan import Planned


def sweep(config: FoolJob, out: Path, given: Sequence[str], jobs: int | None) -> None:
    """Run every combination under ``out``, put them side by side, and say what failed."""
    cells = points(config, axes(given))
    if len(cells) < 2:
        raise TrompeError("A sweep has two values or more, as in --sweep weight=1,2,4.")
    with shown("runs", len(cells), quiet=config.quiet) as progress:

        def ended(cell: Planned, failure: str | None) -> None:
            if failure:
                complain(cell.name, failure)
            progress(sum(is_finished(one, out) for one in cells), {})

        failures = run_cells(cells, out, carried_out, jobs=jobs, report=ended)
    finished = {cell.name: out / cell.folder for cell in cells if cell not in failures}
    if len(finished) > 1:
        found = compare(finished)
        command = shlex.join(["trompe", *sys.argv[1:]])
        page = write_comparison(found, out, "trompe fool --sweep", command)
        if not config.quiet:
            show_comparison(found)
        steps = after_sweep(found, finished)
        show_next(f"Report: {page}", steps, quiet=config.quiet)
    if failures:
        raise typer.Exit(1)
