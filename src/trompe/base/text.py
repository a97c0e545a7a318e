"""YAML and JSON as people and other programs wrote them: read, or refused with a ValueError."""

from __future__ import annotations

import json
from typing import Any

import yaml

DEEPEST = 100  # lists and mappings in one another
LARGEST = 1_000_000  # values, with all that aliases stand for


class _Shallow:
    """Ends the reading of YAML early: the deeper it is, the slower."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise RecursionError
        try:
            return super().compose_node(parent, index)  # type: ignore[misc]
        finally:
            self.depth -= 1


class _Typed(_Shallow, yaml.SafeLoader):
    """Reads numbers, dates and so on as such."""


class _Texts(_Shallow, yaml.BaseLoader):
    """Reads all that is no list or mapping as text."""


def from_yaml(text: str, *, typed: bool = True) -> Any:
    """What YAML text holds; all of it is text if it is not ``typed``.

    Raises
    ------
    ValueError
        If it is no YAML, is nested too deeply, or its aliases stand for too much.
    """
    try:
        return _checked(yaml.load(text, _Typed if typed else _Texts))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def from_json(text: str) -> Any:
    """What JSON text holds.

    Raises
    ------
    ValueError
        If it is no JSON, or is nested too deeply.
    """
    try:
        return _checked(json.loads(text))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _checked(value: Any) -> Any:
    size, depth = _measured(value, {})
    if depth > DEEPEST:
        raise RecursionError
    if size > LARGEST:
        raise ValueError("its aliases stand for too much")
    return value


def _measured(value: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values there are in one, and how deep; ``known`` holds those that were measured."""
    if not isinstance(value, dict | list):
        return 1, 0
    if id(value) not in known:
        known[id(value)] = LARGEST, 0  # where it is a part of itself
        inner = [
            _measured(v, known) for v in (value.values() if isinstance(value, dict) else value)
        ]
        known[id(value)] = 1 + sum(n for n, _ in inner), 1 + max((d for _, d in inner), default=0)
    return known[id(value)]
