"""Freed memory stays with the process that asked for it."""

import subprocess
import sys

import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much is resident there")
def test_a_freed_tensor_leaves_its_memory_to_the_next():
    def grown(first):
        command = [sys.executable, "-c", KEPT.format(first=first)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert grown("") < 20
    assert grown("import trompe.memory; trompe.memory.keep_freed_memory()") > 200
