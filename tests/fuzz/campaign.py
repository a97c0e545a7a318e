"""Give readers what is drawn, and count what becomes of it."""

import os
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.readers import Reader
from trompe.errors import TrompeError

SECONDS, MEMORY = 10, 1 << 30


class Hang(BaseException):
    """A reader took too long."""


@dataclass
class Outcomes:
    """How often a reader returned or refused, and by place what else happened, with an input."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: dict[str, tuple[str, Any]] = field(default_factory=dict)
    slowest: float = 0.0


def campaign(reader: Reader, inputs: int, number: int = 0) -> Outcomes:
    """Call a reader with so many inputs, which ``number`` and its name decide."""
    found = Outcomes()

    @seed(f"{reader.name} {number}")
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.inputs)
    def one(drawn: Any) -> None:
        begun = time.process_time()
        try:
            with limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.call(drawn)
            found.counts["read"] += 1
        except TrompeError:
            found.counts["refused"] += 1
        except (Exception, Hang) as error:
            where = _place(error)
            found.counts["finding"] += 1
            found.findings.setdefault(where, (traceback.format_exc(limit=-6), drawn))
        found.slowest = max(found.slowest, time.process_time() - begun)

    one()
    return found


@contextmanager
def limited() -> Iterator[None]:
    """Give a block as much memory and time as a reader may take."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    handler = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _too_long(*_: Any) -> None:
    raise Hang(f"more than {SECONDS} s")


def _place(error: BaseException) -> str:
    """The error's type and the last line of trompe that it went through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/trompe/" in f.filename]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
