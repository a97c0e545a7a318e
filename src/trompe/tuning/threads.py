"""How many threads a fine-tuning computes with: found by timing its steps, not by counting cores.

Where others use the machine, or the network is small, fewer threads than cores are faster.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

SET_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
TIMED = 3  # steps with each number, after one that is not
WORTH = 0.95  # of the time with fewer threads: more threads must be faster than that


class Threads:
    """Times steps with all threads, half of them, ... and one, in turn; then takes the best.

    The number stays as it is where the environment sets it (``OMP_NUM_THREADS``), and so must be
    for two runs to agree in every bit: sums are added in another order by other threads. It is as
    it was when the block ends.
    """

    def __init__(self, device: torch.device) -> None:
        self.before = torch.get_num_threads()
        is_open = device.type == "cpu" and not any(name in os.environ for name in SET_BY)
        self.numbers = [self.before]
        while is_open and self.numbers[-1] > 1:
            self.numbers.append(self.numbers[-1] // 2)
        self.seconds: dict[int, list[float]] = {number: [] for number in self.numbers}

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step."""
        if len(self.numbers) == 1:
            yield
            return
        number = min(self.numbers, key=lambda n: len(self.seconds[n]))
        torch.set_num_threads(number)
        begun = time.perf_counter()
        yield
        self.seconds[number].append(time.perf_counter() - begun)
        if all(len(of) > TIMED for of in self.seconds.values()):
            self.numbers = [best(self.seconds)]
            torch.set_num_threads(self.numbers[0])


def best(seconds: dict[int, list[float]]) -> int:
    """The number of threads whose median time is lowest; fewer, where more are hardly faster."""
    medians = {number: median(of[1:]) for number, of in seconds.items()}
    chosen = min(medians)
    for number in sorted(medians):
        if medians[number] < WORTH * medians[chosen]:
            chosen = number
    return chosen
