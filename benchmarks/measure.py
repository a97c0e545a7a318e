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
Candidate = tuple[Work, str, float | None]  # with the base's name and the ratio aimed at


class Row(NamedTuple):
    """One comparison: ``seconds`` of ``what`` on ``network`` are ``ratio`` of those of ``base``."""

    network: str
    what: str
    base: str
    seconds: float
    ratio: float
    aim: float | None
    peak_ratio: float | None = None


def compared(candidates: Mapping[str, Candidate], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds per call and the ratio to the base, which runs right before: medians, once warm."""
    for work, _, _ in candidates.values():
        work()
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, (work, base, _) in candidates.items():
            before = _seconds(candidates[base][0])
            pairs[name].append((before, _seconds(work)))
    return {
        name: (median(own for _, own in of), median(own / before for before, own in of))
        for name, of in pairs.items()
    }


def _seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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
