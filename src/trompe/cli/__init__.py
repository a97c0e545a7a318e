"""The command line: ``trompe COMMAND``, a module per command, imported when it is called.

Options are the fields of the job of each command.
"""

import sys
import warnings

from trompe.base.memory import keep_freed_memory
from trompe.cli.app import app, complain
from trompe.cli.usage import UsageError, sentence
from trompe.errors import TrompeError


def main() -> None:
    """Run the command line; exit code 2 for what can't be used, 130 when interrupted."""
    keep_freed_memory()
    warnings.showwarning = lambda message, *_: complain("Note", message, "yellow")
    try:
        sys.exit(app(prog_name="trompe", standalone_mode=False) or 0)
    except UsageError as error:
        complain("Error", sentence(error))
        sys.exit(2)
    except TrompeError as error:
        complain("Error", error)
        sys.exit(2)
