"""A run directory: complete, portable, written so that a kill at any moment leaves it usable."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import nn

from trompe.base import json_text, processes, yaml_text
from trompe.base.identity import file_digest
from trompe.errors import TrompeError

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
STATUS = "status.json"
SEAL = "digests.json"
SCHEMA = 2  # of run directories; another one is not gone on with


class Saved(Protocol):
    """What can write itself."""

    def save(self, directory: Path, /) -> None:
        """Write all of it."""


P = TypeVar("P", bound=Saved)

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# What safetensors and torch.save say instead of raising an OSError.
_FULL_WORDS = ("No space left", "File too large", "file write failed", "unexpected pos")


@contextmanager
def opened(directory: Path, config: Mapping[str, Any], start: Mapping[str, str]) -> Iterator[Path]:
    """Hold a run directory for one run; create it, or go on with the run that it holds.

    A directory whose run was given up before it had anything to keep is taken over.

    Parameters
    ----------
    directory
        The run directory; made if it does not exist.
    config
        The resolved config, written as ``config.yaml``.
    start
        Fingerprints of what the run starts from, by what it is: ``{"weights": ..., "data": ...}``.

    Raises
    ------
    TrompeError
        If another process holds it, or it holds another run or other files, or something leads out
        of it, or it can't be written.
    """
    with locked(directory) if processes.is_main() else nullcontext():
        processes.from_main(lambda: _claim(directory, config, start))
        yield directory


def contained(directory: Path) -> Path:
    """The directory, in which nothing leads out of it: no link elsewhere, no device, no pipe.

    Raises
    ------
    TrompeError
        If something does; it is not read or written.
    """
    root = os.path.realpath(directory)
    for entry in _entries(directory):
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not Path(target).is_relative_to(root):
                raise TrompeError(
                    f"'{entry.path}' is a link out of its run directory, to '{target}', and is not "
                    "followed: if you trust it, put the file itself in its place."
                )
        elif not entry.is_file() and not entry.is_dir():
            raise TrompeError(f"'{entry.path}' is no file but a device or a pipe; remove it.")
    return directory


def _entries(directory: Path | str) -> Iterator[os.DirEntry[str]]:
    """All that lies in a directory and in those below it, links not followed."""
    with suppress(FileNotFoundError), os.scandir(directory) as entries:  # it may go meanwhile
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(entry.path)


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


def check_place(directory: Path) -> None:
    """Refuse a directory that can't be made or written, before anything is spent on a run.

    Raises
    ------
    TrompeError
        If it is a file, is in one, or may not be written.
    """
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    with writing(directory):
        if not there.is_dir():
            raise NotADirectoryError
        if not os.access(there, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _claim(directory: Path, config: Mapping[str, Any], start: Mapping[str, str]) -> None:
    described = {
        "schema": SCHEMA,
        "start": dict(start),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "trompe": version("trompe"),
    }
    if (directory / CONFIG).exists():
        if _is_same(directory, config, start):
            return
        remove(directory / "checkpoints")
    else:
        others = [p.name for p in directory.iterdir() if p.name[0] != "." and p.name != ENVIRONMENT]
        if others:
            raise TrompeError(
                f"The directory '{directory}' holds other files ({others[0]}, ...) and no run; "
                "choose an empty or a new one."
            )
        contained(directory)
    write_text(directory / ENVIRONMENT, json.dumps(described, indent=2))
    write_text(directory / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))


def _is_same(directory: Path, config: Mapping[str, Any], start: Mapping[str, str]) -> bool:
    """Whether a directory holds this run; False for another one that has nothing to keep.

    Raises
    ------
    TrompeError
        If it holds another one.
    """
    before = config_of(directory)
    started = environment_of(directory)
    keys = [key for key in {**config, **before} if before.get(key) != config.get(key)]
    others = [what for what in start if started.get("start", {}).get(what) != start[what]]
    if not keys and not others and started.get("schema") == SCHEMA:
        return True
    if not finished(directory) and not any(directory.rglob("*.safetensors")):
        return False
    if started.get("schema") != SCHEMA:
        raise TrompeError(
            f"The run directory '{directory}' was written by trompe {started.get('trompe')}, which "
            "laid runs out in another way; choose another directory."
        )
    if keys and not {"weights", "data"} & {*others}:
        raise TrompeError(
            f"The run directory '{directory}' holds a run with {keys[0]}={before.get(keys[0])}, "
            f"not {config.get(keys[0])}; choose another directory, or give the same settings to "
            "go on."
        )
    raise TrompeError(
        f"The run directory '{directory}' holds a run that started from other {others[0]}; choose "
        "another directory."
    )


def config_of(directory: Path) -> dict[str, Any]:
    """The settings of the run that a directory holds.

    Raises
    ------
    TrompeError
        If it holds none, or the file can't be read.
    """
    return _mapping(directory / CONFIG)


def environment_of(directory: Path) -> dict[str, Any]:
    """Where a run was made, by which versions, and what it started from."""
    return _mapping(directory / ENVIRONMENT)


def _mapping(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):  # also False for a name that no file can have
        raise TrompeError(
            f"{path.parent} is not a run directory: it has no {path.name}; give the directory that "
            "`trompe fool` wrote."
        )
    contained(path.parent)
    try:
        text = path.read_text(encoding="utf-8")
        values = (json_text if path.suffix == ".json" else yaml_text).loaded(text)
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise TrompeError(
            f"{path} can't be read ({error}); repair it or make a new run."
        ) from error
    if not isinstance(values, dict):
        raise TrompeError(f"{path} holds no mapping of names to values; repair it.")
    return {str(key): value for key, value in values.items()}


def read_json(path: Path) -> Any:
    """What a JSON file of a run says.

    Raises
    ------
    TrompeError
        If it can't be read.
    """
    try:
        return json_text.loaded(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrompeError(
            f"'{path}' is damaged ({error}); remove it and run the same command again."
        ) from error


def finished(directory: Path) -> list[str]:
    """The parts of a run that are done, e.g. ``["fool", "control", "evaluation"]``."""
    path = directory / STATUS
    parts = _mapping(path).get("finished") if os.path.isfile(path) else []
    if not isinstance(parts, list):
        raise TrompeError(f"{path} doesn't list what is finished; repair it or make a new run.")
    return [*map(str, parts)]


def finish(directory: Path, part: str, *made: Path) -> None:
    """Say in a run directory that a part of its run is done, and keep digests of what it made."""
    parts = dict.fromkeys([*finished(directory), part])
    digests = _digests(directory) | _digested(directory, made)
    told = {"schema": SCHEMA, "finished": [*parts], "digests": digests}
    write_text(directory / STATUS, json.dumps(told))


def check_intact(directory: Path, *made: Path) -> None:
    """Refuse files and folders that do not hold what they did when their part was done.

    Raises
    ------
    TrompeError
        If one is damaged.
    """
    known = _digests(directory)
    for name, digest in _digested(directory, made).items():
        if known.get(name, digest) != digest:
            raise TrompeError(
                f"'{directory / name}' is damaged: it does not hold what was written. Restore it, "
                f"or remove '{directory}' and run the same command again."
            )


def _digests(directory: Path) -> dict[str, str]:
    path = directory / STATUS
    known = _mapping(path).get("digests") if os.path.isfile(path) else None
    return known if isinstance(known, dict) else {}


def _digested(directory: Path, made: Sequence[Path]) -> dict[str, str]:
    files = [f for path in made for f in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {str(f.relative_to(directory)): file_digest(f) for f in files if f.is_file()}


def seal(directory: Path) -> None:
    """Keep digests of all files of a directory in it."""
    write_text(directory / SEAL, json.dumps(_sealed(directory)))


def check_sealed(directory: Path) -> None:
    """Refuse a directory whose files are not those that `seal` found.

    Raises
    ------
    TrompeError
        If one is damaged or is not there.
    """
    if (directory / SEAL).is_file() and _mapping(directory / SEAL) != _sealed(directory):
        raise TrompeError(
            f"'{directory}' is damaged: it does not hold what was written. Remove it and run the "
            "same command again."
        )


def _sealed(directory: Path) -> dict[str, str]:
    found = _digested(directory, [directory])
    return {name: digest for name, digest in found.items() if name != SEAL}


def part(directory: Path, name: str, make: Callable[[], P], load: Callable[[Path], P]) -> P:
    """A part of a run: read if it is done, else made, saved under its name and marked as done.

    Parameters
    ----------
    make
        Makes what has a method ``save(path)``.
    load
        Reads from the path what that wrote.
    """
    path = directory / name
    if processes.from_main(lambda: name in finished(directory)):
        check_intact(directory, path)
        return load(path)
    made = make()
    if processes.is_main():
        made.save(path)
        finish(directory, name, path)
    return made


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
        if isinstance(error, FileExistsError | NotADirectoryError):
            raise TrompeError(
                f"'{path}' can't be written: it is no directory but a file; choose another."
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


def file_name(name: str) -> str:
    """The name of something, which becomes that of a file or directory in a given one.

    Raises
    ------
    TrompeError
        If it would lie elsewhere.
    """
    if not name or set(name) & {"/", "\\", "\0"} or name in (".", ".."):
        raise TrompeError(f"'{name}' becomes the name of a file; leave out / and \\.")
    return name


def as_file_name(text: str) -> str:
    """A text as the name of a file, with a - for what may be none of it."""
    return re.sub(r"[^\w.+=,-]+", "-", text)


def unfinished(path: Path) -> Path:
    """Where `replacing` writes until it is done."""
    return path.with_name(f".{path.name}.new")


def require_space(directory: Path, model: nn.Module, copies: int) -> None:
    """Refuse a run whose files would not fit.

    Raises
    ------
    TrompeError
        If there is no room for so many copies of the model's weights.
    """
    state = model.state_dict().values()
    needed = copies * sum(one.nbytes for one in state if isinstance(one, torch.Tensor))
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise TrompeError(
            f"The run needs about {needed / 1e6:,.0f} MB in '{directory}' but {free / 1e6:,.0f} MB "
            "are free; free some space, or choose another directory."
        )


def remove(directory: Path) -> None:
    """Remove a directory, if there is one, at once as far as anyone looking for it can see."""
    hidden = directory.with_name(f".{directory.name}.old")
    with writing(directory):
        if hidden.exists():  # of a removal that was interrupted
            shutil.rmtree(hidden)
        if directory.exists():
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
