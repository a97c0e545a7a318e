"""A run directory: complete, portable, written so that a kill at any moment leaves it usable."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import nn

from trompe.base import processes
from trompe.errors import TrompeError

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# What safetensors and torch.save say instead of raising an OSError.
_FULL_WORDS = ("No space left", "File too large", "file write failed", "unexpected pos")


@contextmanager
def opened(directory: Path, config: Mapping[str, Any], fingerprint: str) -> Iterator[Path]:
    """Hold a run directory for one run; create it, or go on with the run that it holds.

    Parameters
    ----------
    directory
        The run directory; made if it does not exist.
    config
        The resolved config, written as ``config.yaml``.
    fingerprint
        What the run starts from, e.g. a digest of the original weights.

    Raises
    ------
    TrompeError
        If another process holds it, or it holds another run or other files, or can't be written.
    """
    with locked(directory) if processes.is_main() else nullcontext():
        processes.from_main(lambda: _claim(directory, config, fingerprint))
        yield directory


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes out of a directory, which is made if it does not exist.

    Raises
    ------
    TrompeError
        If another process holds it, or it can't be written.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise TrompeError(
                f"The run directory '{directory}' is in use by another process; wait for it, or "
                "choose another directory."
            ) from error
    try:
        yield
    finally:
        lock.release()


def _claim(directory: Path, config: Mapping[str, Any], fingerprint: str) -> None:
    described = {
        "fingerprint": fingerprint,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "trompe": version("trompe"),
    }
    path = directory / CONFIG
    if not path.exists():
        others = [p.name for p in directory.iterdir() if p.name[0] != "." and p.name != ENVIRONMENT]
        if others:
            raise TrompeError(
                f"The directory '{directory}' holds other files ({others[0]}, ...) and no run; "
                "choose an empty or a new one."
            )
        write_text(directory / ENVIRONMENT, json.dumps(described, indent=2))
        write_text(path, yaml.safe_dump(dict(config), sort_keys=False))
        return
    before = yaml.safe_load(path.read_text())
    for key in [*config, *before]:
        if before.get(key) != config.get(key):
            raise TrompeError(
                f"The run directory '{directory}' holds a run with {key}={before.get(key)}, not "
                f"{config.get(key)}; choose another directory, or give the same settings to go on."
            )
    if json.loads((directory / ENVIRONMENT).read_text())["fingerprint"] != fingerprint:
        raise TrompeError(
            f"The run directory '{directory}' holds a run that started from other weights or "
            "data; choose another directory."
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden path into one sentence.

    Raises
    ------
    TrompeError
        If the block fails to write.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        if full or any(words in str(error) for words in _FULL_WORDS):
            raise TrompeError(
                f"The disk is full: '{path}' can't be written. Free some space and run the same "
                "command again; it goes on from the last checkpoint."
            ) from error
        if isinstance(error, OSError):
            raise TrompeError(
                f"'{path}' can't be written ({error.strerror or error}); choose another directory."
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file at once or not at all."""
    with replacing(path) as new:
        new.write_text(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path that takes the place of ``path`` (file or directory) when done."""
    new = unfinished(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if new.is_dir():
            shutil.rmtree(new)
        yield new
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(new, path)


def unfinished(path: Path) -> Path:
    """Where `replacing` writes until it is done."""
    return path.with_name(f".{path.name}.new")


def fingerprint(model: nn.Module, *more: object) -> str:
    """A digest of a model's parameters and buffers, and of the text of anything else."""
    digest = hashlib.sha256(repr(more).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def require_space(directory: Path, model: nn.Module, copies: int) -> None:
    """Refuse a run whose files would not fit.

    Raises
    ------
    TrompeError
        If there is no room for so many copies of the model's weights.
    """
    needed = copies * sum(tensor.nbytes for tensor in model.state_dict().values())
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise TrompeError(
            f"The run needs about {needed / 1e6:,.0f} MB in '{directory}' but {free / 1e6:,.0f} MB "
            "are free; free some space, or choose another directory."
        )


def remove(directory: Path) -> None:
    """Remove a directory at once, as far as anyone looking for it can see."""
    hidden = directory.with_name(f".{directory.name}.old")
    directory.rename(hidden)
    shutil.rmtree(hidden)


def array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new float32 array that lives in a file, its disk space taken at once."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        created = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return created
