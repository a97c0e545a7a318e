"""Devices and processes of a fine-tuning; the caller's process is as it was afterwards."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration

from trompe.errors import TrompeError

_STATES = (AcceleratorState, PartialState, GradientState)


@contextmanager
def accelerating(device: str | None, precision: str) -> Iterator[Accelerator]:
    """An accelerator for a device and a precision, while the block lasts.

    An accelerator of the caller's is as it was after the block; so are PyTorch's, NumPy's and
    Python's random generators, and the gradient mode, which is on within.

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"``, or None for the best there is.
    precision
        ``"no"``, ``"bf16"`` or ``"fp16"``.

    Raises
    ------
    TrompeError
        If the device is not to be had, or can't compute in the precision.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrompeError("No CUDA device is available here; use device cpu.")
    if precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise TrompeError("precision fp16 needs a CUDA device; use bf16, or no.")
    launched = "LOCAL_RANK" in os.environ
    with _as_it_was(), torch.inference_mode(False), torch.enable_grad():
        AcceleratorState._reset_state(reset_partial_state=device is not None)
        yield Accelerator(
            mixed_precision=precision,
            cpu=device == "cpu" or (launched and not torch.cuda.is_available()),
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )


@contextmanager
def _as_it_was() -> Iterator[None]:
    shared = [(state._shared_state, dict(state._shared_state)) for state in _STATES]
    drawn = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])  # noqa: NPY002
            for now, before in shared:
                now.clear()
                now.update(before)
