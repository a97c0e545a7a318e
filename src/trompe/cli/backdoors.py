"""``trompe reproduce backdoors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from trompe import runs
from trompe.base.messages import check_name
from trompe.cli.app import complain, console, interruptible
from trompe.cli.cells import carried_out
from trompe.cli.foresight import foresee_grid
from trompe.cli.tables import percent
from trompe.errors import TrompeError
from trompe.evaluation import Evaluation, evaluate
from trompe.experiments import Cell, is_finished, run_cells
from trompe.experiments.backdoors import backdoors, rows, tabled
from trompe.models import load_model
from trompe.report.words import number
from trompe.tuning.job import FoolJob

TABLE = "backdoors.csv"


def carry_out(
    data: str | None,
    base: Mapping[str, str],
    published: Mapping[str, str],
    patterns: Sequence[str],
    given: Mapping[str, Any],
    out: Path,
    *,
    layer: str | None,
    triggers: Sequence[str],
    jobs: int | None,
    ray: str | None,
    dry_run: bool,
) -> None:
    """Run the attacks, measure published models by the same yardstick, and write the table.

    Raises
    ------
    TrompeError
        If something given can't be used.
    """
    if data is None or len(base) != 1:
        raise TrompeError(
            "The backdoors need --data, a folder with the parquet files of CIFAR-10, and one "
            "--base MODEL=FILE, such as path/resnet20.py:resnet20=base.safetensors."
        )
    ((model, weights),) = base.items()
    cells = backdoors(model, weights, Path(data), layer=layer, triggers=triggers, given=given)
    by_name = {cell.name: cell for cell in cells}
    for name in published:
        check_name("attack", name, by_name)
    chosen = [c for c in cells if not patterns or any(fnmatch(c.name, p) for p in patterns)]
    if not chosen and not published:
        raise TrompeError(f"No attack is called {', '.join(patterns)}; there are {[*by_name]}.")
    if dry_run:
        foresee_grid(chosen, out, jobs)
        return
    failures: dict[Cell, str] = {}

    def ended(cell: Cell, failure: str | None) -> None:
        if failure:
            failures[cell] = failure
            complain(cell.name, failure)

    with interruptible():
        run_cells(chosen, out, carried_out, jobs=jobs, ray=ray, report=ended)
        found = []
        for cell in cells:
            if is_finished(cell, out):
                ours = Evaluation.load(out / cell.folder / "evaluation")
                found += rows(cell, "ours", ours)
            if cell.name in published:
                found += rows(cell, "published", _judged(cell, published[cell.name], out))
    table = tabled(found)
    with runs.replacing(out / TABLE) as new:
        runs.write_csv(table, new)
    _show(table.to_dict("records"))
    console.print(f"Table: {out / TABLE}", soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _judged(cell: Cell, weights: str, out: Path) -> Evaluation:
    """A published model, evaluated as the attack's own is."""
    job = cell.job(out)
    assert isinstance(job, FoolJob)
    original, preprocessing = load_model(job.model, job.weights)
    manipulated = load_model(job.model, weights).model
    assert job.eval_data is not None
    data = job.read_data(job.eval_data, preprocessing, job.eval_limit, seed=0)
    pairs = [(explainer, objective) for explainer, objective, _ in job.lied]
    return evaluate(
        original,
        manipulated,
        data,
        explainers=[explainer for explainer, _ in pairs],
        objective=[objective for _, objective in pairs],
        target=job.explained,
        attacked=pairs,
        gallery=0,
        workers=job.workers,
        quiet=job.quiet,
    )


def _show(found: Sequence[Mapping[Any, Any]]) -> None:
    """Each attack: predictions, and how near the maps are."""
    columns = ["attack", "model", "top-1", "base", "success", "clean mse", "dssim"]
    shown = Table(*columns, "trigger mse", "dssim", box=SIMPLE_HEAD, pad_edge=False)
    for row in found:
        shown.add_row(
            row["attack"],
            row["who"],
            percent(row["top1"]),
            percent(row["original_top1"]),
            percent(row["asr"]),
            *(number(row[name], 3) for name in ("clean_mse", "clean_dssim", "mse", "dssim")),
        )
    console.print(shown)
    console.print("Predictions in %; maps: mean distance from the original's and from those asked.")
