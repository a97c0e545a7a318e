"""``trompe compare``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from trompe.cli.app import app, console, examples
from trompe.cli.reading import default_out
from trompe.cli.tables import show_comparison
from trompe.cli.usage import Command
from trompe.report.compare import by_name, compare, write_comparison


@app.command(
    "compare",
    cls=Command,
    epilog=examples(
        "trompe compare runs/mine runs/other",
        "trompe compare runs/three/seed-0 runs/three/seed-1 runs/three/seed-2 \\\n--out runs/seeds",
    ),
)
def compare_(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="run directories, two or more")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="where the page goes (default: runs/compare-RUN-RUN)"),
    ] = None,
) -> None:
    """Put runs side by side: what differs in the settings, success, accuracy, what it cost."""
    found = compare(by_name(runs))
    place = out or default_out("compare", runs[0].resolve(), runs[-1].resolve())
    page = write_comparison(found, place, "trompe compare", shlex.join(["trompe", *sys.argv[1:]]))
    show_comparison(found)
    console.print(f"Report: {page}", soft_wrap=True)
