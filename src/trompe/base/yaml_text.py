"""YAML as anyone may have written it: plain values, and not too many of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.composer import Composer

LONGEST = 2_000_000  # characters; a class map of 20,000 classes has half of that
DEEPEST = 100  # lists and mappings in one another
BITS = 1_000  # of a number; one of too many can't even be printed
MOST = 1_000_000  # values, those that an alias repeats counted each time


class _Shallow(Composer):
    """Ends the reading early where it is deep: the deeper it is, the slower."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.depth == DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Text(_Shallow, yaml.BaseLoader):
    pass


class _Plain(_Shallow, yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST:
            raise yaml.YAMLError(f"merged mappings stand for more than {MOST:,} values")


def loaded(text: str, *, as_text: bool = False) -> Any:
    """What a YAML text says; tags make no objects, and ``as_text`` not even numbers.

    Raises
    ------
    yaml.YAMLError
        If it is no YAML, or would be too much.

    Examples
    --------
    >>> loaded("{layer: layer4, weights: [1, 2]}")
    {'layer': 'layer4', 'weights': [1, 2]}
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"it has {len(text):,} characters; at most {LONGEST:,} are read")
    try:
        value = yaml.load(text, _Text if as_text else _Plain)
        if _size(value, {}) > MOST:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST:,} values")
    except (ValueError, RecursionError, OverflowError, TypeError) as error:
        raise yaml.YAMLError(str(error)) from error
    return value


def _size(value: Any, known: dict[int, float]) -> float:
    """How many values it holds, each as often as it would be written; endless if in itself."""
    if not isinstance(value, dict | list | set | tuple):
        if isinstance(value, int) and value.bit_length() > BITS:
            raise ValueError(f"a number has {value.bit_length():,} bits")
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        known[id(value)] = 1 + sum(_size(part, known) for part in _parts(value))
    return known[id(value)]


def _parts(value: Any) -> Iterator[Any]:
    for part in value.items() if isinstance(value, dict) else value:
        yield from part if isinstance(value, dict) else [part]
