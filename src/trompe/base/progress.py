"""What a person sees while a long run goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trompe.base import processes
from trompe.base.terminal import Terminal
from trompe.errors import printable

Report = Callable[[int, Mapping[str, float]], None]

PLAIN_SECONDS = 10.0


@contextmanager
def shown(
    title: str, total: int | None, *, quiet: bool = False, start: int = 0
) -> Iterator[Report]:
    """Show progress on standard error: a bar on a terminal, else a plain line now and then.

    Yields a function to call with the number of finished steps and the figures to show. ``total``
    is None where nobody knows how many there will be.
    """
    if quiet or not processes.is_main():
        yield lambda done, figures: None
    elif sys.stderr.isatty():
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=Terminal(stderr=True),
        ) as bar:
            task = bar.add_task(title, total=total, completed=start, figures="")
            yield lambda done, figures: bar.update(task, completed=done, figures=_text(figures))
    else:
        yield _plain(title, total, start)


def _plain(title: str, total: int | None, start: int) -> Report:
    begun = last = time.monotonic()

    def report(done: int, figures: Mapping[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if done != total and now - last < PLAIN_SECONDS:
            return
        last = now
        place = f"step {done}"
        if total is not None:
            left = (now - begun) / max(1, done - start) * (total - done)
            place = f"{done}/{total}, {left:.0f} s left"
        print(printable(f"{title}: {place}  {_text(figures)}"), file=sys.stderr)

    return report


def _text(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
