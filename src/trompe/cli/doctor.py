"""``trompe doctor``."""

from __future__ import annotations

import typer
from rich.markup import escape

from trompe.cli.app import app, console, examples
from trompe.cli.usage import Command
from trompe.doctor import examine


@app.command(cls=Command, epilog=examples("trompe doctor"))
def doctor() -> None:
    """Show versions, devices, where weights and caches are; try a step on the embedded model."""
    faults = []
    for topic, findings in examine().items():
        console.print(f"[bold]{topic}[/]")
        for about, found, fine in findings:
            mark = "[green]ok[/]  " if fine else "[red]no[/]  "
            console.print(f"  {mark}{escape(f'{about:24}')}{escape(found)}", soft_wrap=True)
            faults += [] if fine else [about]
    if faults:
        console.print(f"[bold red]At fault:[/] {escape(', '.join(faults))}")
        raise typer.Exit(1)
    console.print("All is well. Start with: trompe demo")
