"""What the process of a grid's cell, or of a sweep's run, carries out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trompe.cli import main
from trompe.cli.app import command_of
from trompe.tuning.job import JOBS

IMPORTED = [command_of(name) for name in JOBS]
"""The commands of cells, imported once before their processes are forked."""


def carried_out(words: Sequence[str]) -> None:
    """Carry a command line out in this process, which is a cell's own."""
    sys.argv = ["trompe", *words]
    main()
