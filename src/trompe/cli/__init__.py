"""The command line: ``trompe COMMAND``, a module per command, imported when it is called.

Options are the fields of the job of each command.
"""

import sys
import warnings

from trompe.base.memory import is_out_of_memory, keep_freed_memory
from trompe.cli.app import app, complain
from trompe.cli.usage import UsageError, sentence
from trompe.errors import TrompeError


def main() -> None:
    """Run the command line; exit code 2 for what can't be used, 130 when interrupted."""
    keep_freed_memory()
    warnings.showwarning = lambda message, *_: complain("Note", message, "yellow")
    # An image of so many pixels is refused.
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
    try:
        sys.exit(app(prog_name="trompe", standalone_mode=False) or 0)
    except UsageError as error:
        complain("Error", sentence(error))
        sys.exit(2)
    except TrompeError as error:
        complain("Error", error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except (MemoryError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            said = "There is not enough memory; free some, or take smaller batches. What is "
            said += "finished is kept."
        elif isinstance(error, OSError) and error.filename is not None:
            said = f"'{error.filename}' can't be used: {error.strerror}. Check the path."
        else:
            raise
        complain("Error", said)
        sys.exit(2)
