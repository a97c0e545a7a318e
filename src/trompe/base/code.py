"""Code of one's own, by name: ``path/file.py:Name`` or ``package.module:Name``."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from trompe.base.identity import file_digest
from trompe.base.messages import did_you_mean
from trompe.errors import TrompeError

_OWN = re.compile(
    r"(?P<module>[^:=]*\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)(?=$|:)(?P<rest>.*)"
)
_named_by: ContextVar[str | None] = ContextVar("named_by", default=None)


class Own(NamedTuple):
    """Where something of one's own is defined, and the text after its name."""

    module: str
    name: str
    rest: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


def own(text: str) -> Own | None:
    """What ``path/file.py:Name`` or ``package.module:Name`` names; None for other text."""
    found = _OWN.fullmatch(text)
    return found and Own(found["module"], found["name"], found["rest"].removeprefix(":"))


@contextmanager
def written_by_others(source: str) -> Iterator[None]:
    """Refuse, in this block, to import what a name asks for: it was found in ``source``.

    A run directory, a checkpoint or a data set may come from anyone; what they name is not run.
    """
    token = _named_by.set(source)
    try:
        yield
    finally:
        _named_by.reset(token)


def refuse_found(named: object, why: str) -> None:
    """Refuse to follow a name or a path that was found in what others wrote.

    Raises
    ------
    TrompeError
        In a block `written_by_others`.
    """
    if source := _named_by.get():
        raise TrompeError(
            f"{source} names '{named}', {why}: if you trust it, give this name yourself, on the "
            "command line, in Python or in a file for --config."
        )


@contextmanager
def imported(named: Own) -> Iterator[tuple[ModuleType, Any]]:
    """The module and what it calls ``named.name``; modules beside it can be imported meanwhile.

    The code of the module is run.

    Raises
    ------
    TrompeError
        If the name comes from someone else, there is no such module or name, or it can't be
        imported.
    """
    refuse_found(named, "whose code would be run")
    is_file = named.module.endswith(".py")
    with _importable(Path(named.module).resolve().parent if is_file else Path.cwd()):
        module = _module(named.module, is_file)
        found = getattr(module, named.name, None)
        if found is None:
            known = [key for key, value in vars(module).items() if callable(value)]
            raise TrompeError(
                f"{named} names no class or function{did_you_mean(named.name, known)}; give one "
                "that the module defines."
            )
        yield module, found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules in ``folder`` be imported, after all others of the same name."""
    entry = str(folder)
    if entry in sys.path:
        yield
        return
    sys.path.append(entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _module(target: str, is_file: bool) -> ModuleType:
    try:
        return _run(Path(target)) if is_file else importlib.import_module(target)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        if is_file and not Path(target).is_file():
            why = "there is no such file"
        raise TrompeError(
            f"{target!r} cannot be imported ({why}); give an importable "
            "package.module:Name or an existing path/file.py:Name."
        ) from error


def _run(path: Path) -> ModuleType:
    """Import a file that is in no package; dataclasses, for one, need it in sys.modules.

    The module's name tells what the file holds, so that what it defines is told apart by it.
    """
    loader = SourceFileLoader(f"trompe_own_{path.stem}_{file_digest(path)[:8]}", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module
