"""What a person sees while a long run goes on."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from trompe.base import processes
from trompe.base.terminal import Terminal
from trompe.errors import printable

Report = Callable[[int, Mapping[str, float]], None]
Work = Callable[[int], float]

PLAIN_SECONDS = 10.0
ENOUGH = 8  # steps
RECENT = 60.0  # seconds, or a fifth of all if that is longer: how fast the work is now


class Remaining:
    """The time that is left, by the speed of late: what came before may have been slower or faster.

    The first step loads and warms up: it is left out as soon as others tell more, and says nothing
    by itself if it was short.

    Parameters
    ----------
    now
        The time at ``start``, in seconds.
    work
        How much is done after so many steps, where some take longer than others.
    """

    def __init__(self, total: int, start: int, now: float, work: Work = float) -> None:
        self.total, self.begun, self.work = total, now, work
        self._seen = deque([(now, start)])

    def __call__(self, done: int, now: float) -> float:
        """How many seconds are left when ``done`` steps are done at the time ``now``."""
        seen = self._seen
        if done > seen[-1][1]:
            seen.append((now, done))
            recent = max(RECENT, (now - self.begun) / 5)
            while len(seen) > 2 and (self._is_first(now) or now - seen[1][0] >= recent):
                seen.popleft()
        (then, before), (last, latest) = seen[0], seen[-1]
        if latest == before or (then == self.begun and last - then < RECENT and len(seen) == 2):
            return math.nan
        seconds = (last - then) / (self.work(latest) - self.work(before))
        return max(0.0, seconds * (self.work(self.total) - self.work(latest)) - (now - last))

    def _is_first(self, now: float) -> bool:
        """Whether the first step is still counted, but the later ones tell more."""
        (then, _), (first, one) = self._seen[0], self._seen[1]
        later = self._seen[-1][1] - one
        return then == self.begun and (later >= ENOUGH or now - first >= first - then)


def spoken(seconds: float) -> str:
    """A duration as people say it: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"


@contextmanager
def shown(
    title: str, total: int | None, *, quiet: bool = False, start: int = 0, work: Work = float
) -> Iterator[Report]:
    """Show progress on standard error: a bar on a terminal, else a plain line now and then.

    Yields a function to call with the number of finished steps and the figures to show. ``total``
    is None where nobody knows how many there will be; ``work`` is that of `Remaining`.
    """
    if quiet or not processes.is_main():
        yield lambda done, figures: None
    elif sys.stderr.isatty():
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[figures]}", markup=False),
            console=Terminal(stderr=True),
        ) as bar:
            task = bar.add_task(title, total=total, completed=start, left="", figures="")
            left = _left(total, start, work)

            def update(done: int, figures: Mapping[str, float]) -> None:
                told = left(done)
                bar.update(task, completed=done, left=told, figures=_text(figures))

            yield update
    else:
        yield _plain(title, total, _left(total, start, work))


def _left(total: int | None, start: int, work: Work) -> Callable[[int], str]:
    """From the steps that are done to ``4 min left``, or nothing where that is not known."""
    if total is None:
        return lambda done: ""
    remaining = Remaining(total, start, time.monotonic(), work)

    def told(done: int) -> str:
        seconds = remaining(done, time.monotonic())
        return "" if math.isnan(seconds) else f"{spoken(seconds)} left"

    return told


def _plain(title: str, total: int | None, left: Callable[[int], str]) -> Report:
    last = time.monotonic()

    def report(done: int, figures: Mapping[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        told = left(done)
        if done != total and now - last < PLAIN_SECONDS:
            return
        last = now
        place = f"step {done}" if total is None else f"{done}/{total}"
        place += f", {told}" if told else ""
        print(printable(f"{title}: {place}  {_text(figures)}"), file=sys.stderr)

    return report


def _text(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
