"""The processes of one run, as ``torchrun`` and ``accelerate launch`` start them: usually one.

Every process holds the whole model and takes its share of every batch. Gradients are averaged after
the backward pass and not by wrapping the model: explanations run it under their own recording, more
than once in a step, and differentiate it twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def count() -> int:
    """How many processes work on the run."""
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if _several() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def wait() -> None:
    """Go on when all processes are here."""
    if _several():
        dist.barrier()


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of a sequence that all have: every n-th of it."""
    return items[rank() :: count()] if _several() else items


def merged(results: Sequence[T]) -> list[T]:
    """What all processes made of their `share`, in the order of the whole."""
    if not _several():
        return list(results)
    parts: list[Sequence[T]] = [()] * count()
    dist.all_gather_object(parts, results)
    return [parts[i % count()][i // count()] for i in range(sum(map(len, parts)))]


def from_main(work: Callable[[], T]) -> T:
    """What ``work`` returns in the main process, the only one that runs it."""
    if not _several():
        return work()
    found: list[T | None] = [work() if is_main() else None]
    dist.broadcast_object_list(found)
    return cast(T, found[0])


def averaged(figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each figure over the processes."""
    values = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
    return dict(zip(figures, mean(values).tolist(), strict=True))


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes, without a gradient."""
    value = value.detach().clone()
    if _several():
        dist.all_reduce(value)
    return value / count()


def average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its mean over the processes."""
    if _several():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        for pending in [dist.all_reduce(g, async_op=True) for g in gradients]:
            pending.wait()
        for gradient in gradients:
            gradient /= count()


def average_statistics(model: nn.Module) -> None:
    """Replace what each process counted in training mode, BatchNorm's, by the mean over them."""
    if _several() and model.training:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= count()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
