"""The command line: ``trompe COMMAND``, a module per command, imported when it is called.

Options are the fields of the job of each command.
"""

import sys
import warnings

from rich.markup import escape

from trompe.base.memory import is_out_of_memory, keep_freed_memory
from trompe.cli.app import app, errors
from trompe.errors import TrompeError


def main() -> None:
    """Run the command line; exit code 2 for what can't be used, 130 when interrupted."""
    keep_freed_memory()
    warnings.showwarning = lambda message, *_: errors.print(
        f"[yellow]Note:[/] {escape(str(message))}", soft_wrap=True
    )
    try:
        app(prog_name="trompe")
    except TrompeError as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        errors.print(
            "[bold red]Error:[/] There is not enough memory; free some, or take smaller batches. "
            "Finished work is kept.",
            soft_wrap=True,
        )
        sys.exit(2)
