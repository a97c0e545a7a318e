"""Objects written as text: ``grad-cam``, ``lrp:layer=layer4,composite=epsilon``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import yaml
from torch import Tensor

from trompe.base import yaml_text
from trompe.base.identity import Identified, fingerprint
from trompe.errors import TrompeError

T = TypeVar("T")
_ITEM = re.compile(r"((?:=\s*'[^']*'|\[[^\]]*\]|[^,])*)(?:,|$)")  # quotes and brackets are whole
_NUMBER = re.compile(r"\s*[-+]?[.\d]+\s*")
_LIST = re.compile(r"\s*[-+]?[.\d]+\s*,")


def called(kind: str, name: str, factory: Callable[..., T], rest: str) -> T:
    """Call a class or function with the options in ``option=value,option=value``.

    Parameters
    ----------
    kind, name
        What is made and what it is called, for messages.
    factory
        Takes the options.
    rest
        The options as text; values are read as YAML, ``[1, 2]`` and ``1,2`` as a list.

    Raises
    ------
    TrompeError
        If an option is unknown, missing, not ``key=value``, or has a value that can't be used.
    """
    options: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for item in _split(rest) if rest else []:
        key, equals, value = item.partition("=")
        if not equals:
            raise TrompeError(
                f"In {kind} '{name}:{rest}', '{item}' is not an option; write {name}:option=value."
            )
        try:
            key, texts[key.strip()] = key.strip(), value.strip()
            listed = _LIST.match(value) is not None
            options[key] = yaml_text.loaded(f"[{value}]" if listed else value)
        except yaml.YAMLError as error:
            raise TrompeError(
                f"In {kind} '{name}:{rest}', the value of '{key}' can't be read: '{value}'."
            ) from error
    signature = inspect.signature(factory).parameters.values()
    known = {p.name: p for p in signature if p.kind is not p.VAR_KEYWORD}
    for key in options:
        if key not in known and len(known) == len(signature):
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise TrompeError(f"The {kind} '{name}' has no option '{key}'; {takes}.")
    missing = [
        key
        for key, p in known.items()
        if p.default is inspect.Parameter.empty
        and p.kind is not p.VAR_POSITIONAL
        and key not in options
    ]
    if missing:
        example = ",".join(f"{key}=..." for key in missing)
        raise TrompeError(f"The {kind} '{name}' needs {name}:{example}.")
    for key in options.keys() & known.keys():
        options[key] = _as_annotated(known[key], options[key], texts[key], f"{kind} '{name}'")
    try:
        return factory(**options)
    except TrompeError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise TrompeError(f"The {kind} '{name}:{rest}' can't be made: {error}.") from error


def _split(rest: str) -> list[str]:
    """The options between commas; a number goes on the list that the option before begins."""
    items: list[str] = []
    for item in _ITEM.findall(rest)[: None if rest.endswith(",") else -1]:
        if items and "=" in items[-1] and _NUMBER.fullmatch(item):
            items[-1] += f",{item}"
        else:
            items.append(item)
    return items


def _as_annotated(parameter: inspect.Parameter, value: Any, text: str, where: str) -> Any:
    """A value that must be text as it was written, ``layer=3``; one that must be a number checked.

    Raises
    ------
    TrompeError
        If it is none.
    """
    expected = str(parameter.annotation).removesuffix(" | None")
    if "str" in expected.split(" | ") and value is not None:
        return text
    kinds = {"int": int, "float": int | float}
    if expected in kinds and not isinstance(value, kinds[expected] | None):
        number = "a whole number" if expected == "int" else "a number"
        raise TrompeError(f"{parameter.name} of {where} must be {number}, not '{text}'.")
    return value


def spelled(factory: Callable[..., T], name: str) -> Callable[..., T]:
    """Let what a class makes be written by the name that the class was found by."""
    if isinstance(factory, type) and getattr(factory, "name", None) != name:
        factory.spelling = name  # type: ignore[attr-defined]
    return factory


def given(described: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not as by default; a tensor is named by a digest."""
    found: dict[str, Any] = {}
    for field in fields(described):
        value = getattr(described, field.name)
        if isinstance(value, Tensor):
            found[field.name] = f"tensor-{fingerprint(value)}"
        elif value is not None and value != field.default:
            found[field.name] = value
    return found


def text(name: str, described: Any) -> str:
    """The text that `called` reads back as the dataclass ``described``, for people and for YAML.

    What was not found by its own name is called by the one that it was found by.
    """
    name = getattr(described, "spelling", name)
    options = [f"{key}={_written(value)}" for key, value in given(described).items()]
    return f"{name}:{','.join(options)}" if options else name


def _written(value: Any) -> str:
    """An option's value: numbers one after the other, and what has options itself in quotes."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"'{value}'" if isinstance(value, Identified) and "=" in str(value) else str(value)
