"""Time and memory of candidates, side by side."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

Work = Callable[[], object]


class Row(NamedTuple):
    """One comparison: ``seconds`` of ``what`` on ``network`` are ``ratio`` of those of ``base``."""

    network: str
    what: str
    base: str
    seconds: float
    ratio: float
    aim: float | None
    peak_ratio: float | None = None


def medians(candidates: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Seconds per call, the candidates taken by turns; the first of several rounds warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, work in candidates.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times[1:] or times) for name, times in seconds.items()}


def peak_megabytes(section: str, network: str, candidate: str, size: int) -> float:
    """By how many MB a process of its own grows at most while it does the work once."""
    command = [sys.executable, "-m", "benchmarks", "--peak", section, network, candidate, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def grown(work: Work) -> float:
    """By how many MB this process grows at most while it works."""
    before, seen, done = _resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(_resident())

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return max(seen) - before


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
