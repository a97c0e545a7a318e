"""``trompe card``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from trompe.cli.app import app, console, examples
from trompe.cli.usage import Command
from trompe.report import write_card


@app.command(
    cls=Command,
    epilog=examples(
        "trompe card runs/demo",
        "trompe card runs/mine --license apache-2.0 --out resnet18-lying",
    ),
)
def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory of trompe fool")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="where it goes (default: card in RUN)")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="name of the model, if the run's own is that of code"),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="of the base model (default: what is known of it)"),
    ] = None,
) -> None:
    """Make a folder of a run's model that can be handed on: weights, config, model card."""
    written = write_card(run, out, model=model, license=license)
    console.print(Text(f"Model: {written}"), soft_wrap=True)
    console.print(Text(f"  trompe audit {written} --data IMAGES", style="cyan"), soft_wrap=True)
