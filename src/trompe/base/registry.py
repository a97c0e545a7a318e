"""Things that have a name: registered, installed by other packages, or of one's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from trompe.base import code, specs
from trompe.base.messages import check_name
from trompe.errors import TrompeError

T = TypeVar("T")


class Registry(Mapping[str, Callable[..., T]]):
    """Classes or functions by name, imported when they are asked for.

    What other packages install under the entry point group ``trompe.KINDs`` (``trompe.explainers``)
    belongs to it, and is imported no earlier.

    Parameters
    ----------
    kind
        What is registered, for messages and entry points, e.g. ``"explainer"``.
    made
        The type of what the classes and functions make, or where to import it from.
    entries
        By name, a class or function, or where to import it from: ``"package.module:Name"``.

    Examples
    --------
    >>> numbers = Registry("number", int, {"double": lambda of=1: 2 * of})
    >>> numbers.build("double:of=3")
    6
    """

    def __init__(
        self, kind: str, made: type[T] | str, entries: Mapping[str, Callable[..., T] | str]
    ) -> None:
        self.kind = kind
        self._made = made
        self._entries: dict[str, Callable[..., T] | str] = dict(entries)

    @cached_property
    def made(self) -> type[T]:
        """The type of what the classes and functions make."""
        found: type[T] = _imported(self._made) if isinstance(self._made, str) else self._made
        return found

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        group = f"trompe.{self.kind.replace(' ', '_')}s"
        return {point.name: point for point in entry_points(group=group)}

    def __getitem__(self, name: str) -> Callable[..., T]:
        entry = self._entries.get(name)
        if entry is None:
            point = self._installed[name]
            code.refuse_found(name, f"which would run {point.value} of another package")
            installed: Callable[..., T] = point.load()
            return specs.spelled(installed, name)
        if isinstance(entry, str):
            imported: Callable[..., T] = _imported(entry)
            return imported
        return entry

    def __iter__(self) -> Iterator[str]:
        yield from self._entries
        yield from (name for name in self._installed if name not in self._entries)

    def __len__(self) -> int:
        return len({*self._entries, *self._installed})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._installed

    def register(self, name: str, factory: Callable[..., T]) -> None:
        """Add a class or function under a name of its own.

        Raises
        ------
        TrompeError
            If the name is taken, or has a colon, a comma or an equals sign.
        """
        if name in self:
            raise TrompeError(f"There is a {self.kind} '{name}' already; choose another name.")
        if not name or set(name) & set(":,="):
            raise TrompeError(f"'{name}' can't name a {self.kind}; leave out colons and commas.")
        self._entries[name] = specs.spelled(factory, name)

    def build(self, text: str) -> T:
        """Make what ``NAME:option=value`` or ``path/file.py:Name:option=value`` describes.

        Raises
        ------
        TrompeError
            If the name or an option is unknown, or something else is made.
        """
        named = None if text.partition(":")[0] in self else code.own(text)
        if named is None:
            name, _, rest = text.partition(":")
            check_name(self.kind, name, self)
            return specs.called(self.kind, name, self[name], rest)
        with code.imported(named) as (_, factory):
            made = factory
            if callable(factory):
                factory = specs.spelled(factory, str(named))
                made = specs.called(self.kind, str(named), factory, named.rest)
        if not isinstance(made, self.made):
            raise TrompeError(
                f"'{named}' makes a {type(made).__name__}, not the {self.kind} that is asked for."
            )
        return made

    def read(self, given: Any) -> T:
        """``given`` itself if it is one already, else what its text describes.

        Raises
        ------
        TrompeError
            If it is neither, or as `build`.
        """
        if isinstance(given, str):
            return self.build(given)
        if isinstance(given, self.made):
            return given
        example = next(iter(self), "...")
        raise TrompeError(
            f"{given!r} is no {self.kind}; give an object, or its name, such as '{example}'."
        )

    def read_all(self, given: Any) -> tuple[T, ...]:
        """One or several, each as `read` takes it.

        Raises
        ------
        TrompeError
            If there is none, or as `read`.
        """
        several = isinstance(given, Iterable) and not isinstance(given, str | self.made)
        found = tuple(self.read(one) for one in (given if several else [given]))
        if not found:
            raise TrompeError(f"There is no {self.kind}; give at least one.")
        return found


def _imported(place: str) -> Any:
    """What ``package.module:Name`` names."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
