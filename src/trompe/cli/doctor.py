"""``trompe doctor``."""

from __future__ import annotations

import typer
from rich.text import Text

from trompe.cli.app import app, console, examples
from trompe.cli.usage import Command
from trompe.doctor import examine


@app.command(cls=Command, epilog=examples("trompe doctor"))
def doctor() -> None:
    """Show versions, devices, where weights and caches are; try a step on the embedded model."""
    faults = []
    for topic, findings in examine().items():
        console.print(topic, style="bold")
        for about, found, fine in findings:
            mark = ("ok", "green") if fine else ("no", "red")
            console.print(Text.assemble("  ", mark, f"  {about:24}{found}"), soft_wrap=True)
            faults += [] if fine else [about]
    if faults:
        console.print(Text.assemble(("At fault:", "bold red"), f" {', '.join(faults)}"))
        raise typer.Exit(1)
    console.print("All is well. Start with: trompe demo")
