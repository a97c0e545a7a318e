"""``trompe reproduce``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from trompe import runs
from trompe.base import yaml_text
from trompe.base.messages import check_name
from trompe.base.progress import shown
from trompe.cli.app import app, complain, console, examples, interruptible
from trompe.cli.backdoors import carry_out
from trompe.cli.cells import carried_out
from trompe.cli.foresight import DRY_RUN, foresee_grid
from trompe.cli.tables import show_grid
from trompe.cli.usage import Command
from trompe.errors import TrompeError
from trompe.experiments import (
    SCALES,
    SECTIONS,
    Cell,
    collect,
    is_finished,
    last_known,
    load_grid,
    run_cells,
    states,
)
from trompe.experiments.backdoors import NAME
from trompe.experiments.results import Known
from trompe.report.grid import write_grid, write_state
from trompe.tuning.job import FoolJob, TrainJob

# What `reproduce` can be asked for: the sections of the grid that it runs.
WHAT: dict[str, tuple[str, ...]] = {
    "all": SECTIONS,
    "passive": ("passive",),
    "active": ("active",),
    "accuracy": SECTIONS,
    "figures": (),
    NAME: (),
}


@app.command(
    cls=Command,
    epilog=examples(
        "trompe reproduce all --scale embedded",
        "trompe reproduce passive --scale imagenette --data photos \\\n"
        "--cells 'location-*-resnet50'",
    ),
)
def reproduce(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help=f"{', '.join(WHAT)}: the cells to run, 'figures' for none, or '{NAME}' for lies "
            "that wait for a trigger",
        ),
    ] = "all",
    scale: Annotated[
        str,
        typer.Option(
            metavar="SCALE", help=f"{', '.join(SCALES)}, or a YAML file laid out like theirs"
        ),
    ] = "embedded",
    cells: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="only cells of these names, e.g. 'location-*-vgg19'"),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="FOLDER", help="folder of the images")] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK=FILE...",
            help="weights to start from, instead of training them; of backdoors MODEL=FILE",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SETTING=VALUE...", help="of every cell, e.g. device=cuda"),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="seeds of every lie and control; the tables have their means"
        ),
    ] = 1,
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="cells at a time (default: one per processor core)"),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="address of a Ray cluster to run the cells on, e.g. auto"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="directory of all runs (default: runs/reproduce-SCALE)"
        ),
    ] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ATTACK=FILE...", help="published models to measure beside ours (backdoors)"
        ),
    ] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRIGGER...", help="four, in place of squares in the corners (backdoors)"
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(metavar="LAYER", help="what the CAMs look at, found if not given (backdoors)"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False,
) -> None:
    """Run the paper's experiments; write its tables with the paper's figures beside ours.

    A cell is a run of trompe fool. Finished cells are not run again, also after an interruption;
    one that fails does not stop the others. The first network of the layout comes first. While
    cells run, the page shows where each of them is.
    """
    check_name("part of the grid", what, WHAT)
    given = _typed(_pairs(set_, "--set")) | ({"seeds": seeds} if seeds > 1 else {})
    if what == NAME:
        carry_out(
            data,
            _pairs(base, "--base"),
            _pairs(published, "--published"),
            cells or [],
            given,
            runs.contained(out or Path("runs") / f"reproduce-{NAME}"),
            layer=layer,
            triggers=trigger or [],
            jobs=jobs,
            ray=ray,
            dry_run=dry_run,
        )
        return
    grid = load_grid(scale, data=data, bases=_pairs(base, "--base"), given=given)
    root = runs.contained(out or Path("runs") / f"reproduce-{grid.scale}")
    chosen = grid.chosen(WHAT[what], cells or []) if WHAT[what] else []
    if dry_run:
        foresee_grid(chosen, root, jobs)
        return
    words = _without_cells(sys.argv[1:])
    if not WHAT[what]:
        words[words.index(what)] = "all"  # which runs what is missing
    again = shlex.join(["trompe", *words])
    running, failures = last_known(grid.cells, root)
    if chosen:
        failures = {cell: why for cell, why in failures.items() if cell not in chosen}
    known: Known = {}
    ends: dict[Cell, dict[str, float]] = {}
    results = collect(grid, root, known)
    with interruptible(), shown("cells", len(chosen)) as progress:

        def refresh() -> None:
            state = states(grid.cells, root, running, failures, ends)
            write_state(grid, results, state, root, again)
            progress(sum(is_finished(c, root) or c in failures for c in chosen), {})

        def begun(cell: Cell) -> None:
            running.append(cell)
            refresh()

        def ended(cell: Cell, failure: str | None) -> None:
            nonlocal results
            if cell in running:
                running.remove(cell)
            if failure:
                failures[cell] = failure
                complain(cell.name, failure)
            results = collect(grid, root, known)
            refresh()

        if chosen:
            run_cells(chosen, root, carried_out, jobs=jobs, ray=ray, report=ended, begun=begun)
    state = states(grid.cells, root, running, failures, ends)
    page = write_grid(grid, results, state, root, again)
    show_grid(results)
    console.print(f"Report: {page}", soft_wrap=True)
    if any(cell in failures for cell in chosen):
        raise typer.Exit(1)


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or ()]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise TrompeError(f"{option} takes NAME=VALUE, not '{name}{equals}{value}'.")
    return {name: value for name, _, value in pairs}


def _typed(given: dict[str, str]) -> dict[str, Any]:
    known = {**FoolJob.model_fields, **TrainJob.model_fields}
    values = {}
    for name, text in given.items():
        check_name("setting", name, known)
        try:
            values[name] = yaml_text.loaded(text)
        except yaml.YAMLError as error:
            raise TrompeError(f"--set {name}={text} can't be read ({error}).") from error
    return values


def _without_cells(words: list[str]) -> list[str]:
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--cells":
            next(rest, None)
        elif not word.startswith("--cells="):
            kept.append(word)
    return kept
