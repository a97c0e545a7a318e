"""``trompe list``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from trompe.base.messages import check_name
from trompe.catalogue import KINDS, entries
from trompe.cli.app import app, console, examples
from trompe.errors import TrompeError


@app.command(
    "list",
    epilog=examples(
        "trompe list explainers", "trompe list models 'resnet*'", "trompe list models 'timm:conv*'"
    ),
)
def list_(
    what: Annotated[
        str,
        typer.Argument(help=", ".join(KINDS), autocompletion=lambda: list(KINDS)),
    ],
    pattern: Annotated[str, typer.Argument(help="only names that fit, e.g. '*grad*'")] = "*",
) -> None:
    """List what can be chosen: names, what they are, options with their defaults."""
    check_name("list of", what, KINDS)
    found = entries(what, pattern)
    if not found:
        raise TrompeError(f"None of the {what} is called '{pattern}'; trompe list {what} has all.")
    shown = Table(Column("name", no_wrap=True), "", box=None, show_header=False, pad_edge=False)
    for name, about, options in found:
        lines = [Text(about), Text(", ".join(options), "dim")]
        shown.add_row(Text(name, "bold"), Text("\n").join(lines[: 2 if options else 1]))
    console.print(shown)
    if what == "models":
        console.print(
            "Further: timm:NAME (trompe list models 'timm:*'), transformers:NAME_OR_PATH, and your "
            "own factory."
        )
