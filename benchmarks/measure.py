"""Time and memory of candidates, side by side."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

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
            before = seconds(candidates[base][0])
            pairs[name].append((before, seconds(work)))
    return {
        name: (median(own for _, own in of), median(own / before for before, own in of))
        for name, of in pairs.items()
    }


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_megabytes(section: str, network: str, candidate: str, size: int) -> float:
    """Of the tensors that a process of its own makes when it does the work twice, the most MB."""
    command = [sys.executable, "-m", "benchmarks", "--peak", section, network, candidate, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak_of(work: Work) -> float:
    """The most MB of tensors at a time, beyond those there are, when the work is done twice.

    Gradients and the optimizer's state are there only the second time. The size of the process
    would be another measure, but it says as much about the allocator: it differs by a tenth from
    run to run.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
        work()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max(e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]") / 2**20
