"""``trompe list``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from trompe.base.messages import check_name
from trompe.catalogue import KINDS, entries
from trompe.cli.app import app, console, examples
from trompe.cli.usage import Command
from trompe.errors import TrompeError

EXPLAINED = 6  # entries; of more, only the names of their options are shown


@app.command(
    "list",
    cls=Command,
    epilog=examples(
        "trompe list explainers", "trompe list models 'resnet*'", "trompe list models 'timm:conv*'"
    ),
)
def list_(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help=", ".join(KINDS), autocompletion=lambda: list(KINDS)),
    ],
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="only names that fit, e.g. '*grad*'")
    ] = "*",
) -> None:
    """List what can be chosen: names, what they are, options with their defaults."""
    check_name("list of", what, KINDS)
    found = entries(what, pattern)
    if not found:
        everything = f"{what} 'timm:*'" if pattern.startswith("timm:") else what
        raise TrompeError(
            f"None of the {what} is called '{pattern}'; trompe list {everything} has all."
        )
    shown = Table(Column("name", no_wrap=True), "", box=None, show_header=False, pad_edge=False)
    in_full = len(found) <= EXPLAINED
    for entry in found:
        lines = [Text(entry.about)]
        if entry.options:
            lines.append(Text(", ".join(entry.options), "dim"))
        if in_full:
            lines += [Text(f"  {name}: {text}", "dim") for name, text in entry.meanings]
        shown.add_row(Text(entry.name, "bold"), Text("\n").join(lines))
    console.print(shown)
    if not in_full and any(entry.meanings for entry in found):
        console.print(f"trompe list {what} NAME says what the options of one are.")
    if what == "composites":
        console.print("trompe list rules has what stands after the kinds of operation.")
    if what == "models":
        console.print(
            "Further: timm:NAME (trompe list models 'timm:*'), transformers:NAME_OR_PATH, and your "
            "own factory."
        )
