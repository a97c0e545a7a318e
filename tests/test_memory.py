"""Freed memory stays with the process that asked for it, and images are not held."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trompe import Location, SimpleGrad, evaluate

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux says how much is resident there"
)

KEPT = """
import torch
from pathlib import Path
{first}
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
before = resident()
torch.ones(64, 2**20)
print(resident() - before)
"""


@linux_only
def test_a_freed_tensor_leaves_its_memory_to_the_next():
    def grown(first):
        command = [sys.executable, "-c", KEPT.format(first=first)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert grown("") < 20
    assert grown("import trompe.base.memory; trompe.base.memory.keep_freed_memory()") > 200


class Drawn:
    """Images drawn when they are asked for, and the most memory in use by then, in MB."""

    def __init__(self, count):
        self.count = count
        self.peak = 0.0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index % 16 == 0:
            if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
                libc.malloc_trim(0)  # what is freed does not count
            used = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
            self.peak = max(self.peak, used)
        return torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(index)), index % 5


@linux_only
def test_evaluating_more_images_takes_no_more_memory():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    first, few, many = Drawn(32), Drawn(32), Drawn(256)
    for data in (first, few, many):  # what is loaded and kept at first does not count
        settings = {"explainers": [SimpleGrad()], "objective": Location(), "gallery": 8}
        evaluate(model, model, data, **settings, batch_size=16)
    more_images = (256 - 32) * 3 * 224**2 * 4 / 2**20
    assert many.peak - few.peak < more_images / 4
