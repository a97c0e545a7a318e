"""Parts of error messages."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable

from trompe.errors import TrompeError


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`` (did you mean a, b?)`` with up to three of the ``known`` names, or nothing."""
    bare = {one.lstrip("-"): one for one in known}
    close = [bare[one] for one in difflib.get_close_matches(name.lstrip("-"), bare)]
    return f" (did you mean {', '.join(close)}?)" if close else ""


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known; suggests a close one.

    Raises
    ------
    TrompeError
        If ``name`` is not in ``known``.
    """
    if not isinstance(name, str) or name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(known)}."
        raise TrompeError(f"There is no {kind} '{name}'; {hint}")


def first_sentence(error: Exception) -> str:
    """How the message of ``error`` begins."""
    return str(error).split(". ")[0].strip()


def listed(what: str, items: Iterable[str], shown: int = 3) -> str:
    """``5 missing (a, b, c and 2 more)``, or nothing if there are no items."""
    items = list(items)
    named = ", ".join(items[:shown])
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return f"{len(items)} {what} ({named}{more})" if items else ""


def unique(names: Iterable[str]) -> list[str]:
    """The names, those that were there before with a number: ``a``, ``b``, ``a #2``."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return found
