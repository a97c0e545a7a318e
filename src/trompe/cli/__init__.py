"""The command line: ``trompe COMMAND``, a module per command, imported when it is called.

Options are the fields of the job of each command.
"""

import sys
import warnings

from rich.markup import escape

from trompe.base.memory import keep_freed_memory
from trompe.cli.app import app, errors
from trompe.cli.usage import UsageError, sentence
from trompe.errors import TrompeError


def main() -> None:
    """Run the command line; exit code 2 for what can't be used, 130 when interrupted."""
    keep_freed_memory()
    warnings.showwarning = lambda message, *_: errors.print(
        f"[yellow]Note:[/] {escape(str(message))}", soft_wrap=True
    )
    try:
        sys.exit(app(prog_name="trompe", standalone_mode=False) or 0)
    except (TrompeError, UsageError) as error:
        said = sentence(error) if isinstance(error, UsageError) else str(error)
        errors.print(f"[bold red]Error:[/] {escape(said)}", soft_wrap=True)
        sys.exit(2)
