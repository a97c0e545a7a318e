"""``trompe figure``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from trompe.cli.app import app, console, examples
from trompe.cli.usage import Command
from trompe.report import figure as draw


@app.command(
    cls=Command,
    epilog=examples(
        "trompe figure runs/demo --layout passive --format pdf",
        "trompe figure runs/reproduce-embedded --layout transfer --out transfer.svg",
    ),
)
def figure(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="run directory, or for transfer that of reproduce")
    ],
    layout: Annotated[
        Literal["passive", "active", "transfer"] | None,
        typer.Option(
            metavar="passive|active|transfer",
            help="pictures of that lie, or the matrix of success rates",
        ),
    ] = None,
    format: Annotated[
        Literal["pdf", "svg", "png"],
        typer.Option(metavar="pdf|svg|png", help="file format, if --out does not say"),
    ] = "pdf",
    images: Annotated[
        int, typer.Option(metavar="N", min=1, help="images of the gallery to draw")
    ] = 4,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="file to write (default: figure-LAYOUT.FORMAT in the run)"
        ),
    ] = None,
) -> None:
    """Draw a figure for a paper: heatmaps before and after, or the transfer matrix."""
    name = f"figure-{layout}" if layout else "figure"
    console.print(draw(run, out or run / f"{name}.{format}", layout, images), soft_wrap=True)
