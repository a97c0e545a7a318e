"""Objects written as text: ``grad-cam``, ``lrp:layer=layer4,composite=epsilon``."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import yaml
from torch import Tensor

from trompe.errors import TrompeError

T = TypeVar("T")
_COMMA = re.compile(r",(?![^\[]*\])")


def build(kind: str, spec: str, registry: Mapping[str, Callable[..., T]]) -> T:
    """Build what ``name`` or ``name:option=value,option=value`` describes.

    Parameters
    ----------
    kind
        What is built, for messages, e.g. ``"explainer"``.
    spec
        The text; values are read as YAML, ``[1, 2]`` as a list.
    registry
        Known names, each with the class or function that takes the options.

    Raises
    ------
    TrompeError
        If the name or an option is unknown, or an option is not ``key=value``.
    """
    name, _, rest = spec.partition(":")
    check_name(kind, name, registry)
    options: dict[str, Any] = {}
    for item in _COMMA.split(rest) if rest else []:
        key, equals, value = item.partition("=")
        if not equals:
            raise TrompeError(
                f"In {kind} '{spec}', '{item}' is not an option; write {name}:option=value."
            )
        options[key.strip()] = yaml.safe_load(value)
    factory = registry[name]
    signature = inspect.signature(factory).parameters.values()
    known = {p.name: p for p in signature if p.kind is not p.VAR_KEYWORD}
    for key in options:
        if key not in known and len(known) == len(signature):
            raise TrompeError(
                f"The {kind} '{name}' has no option '{key}'; it takes {', '.join(known)}."
            )
    missing = [
        key
        for key, p in known.items()
        if p.default is inspect.Parameter.empty and key not in options
    ]
    if missing:
        example = ",".join(f"{key}=..." for key in missing)
        raise TrompeError(f"The {kind} '{name}' needs {name}:{example}.")
    return factory(**options)


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known; suggests a close one.

    Raises
    ------
    TrompeError
        If ``name`` is not in ``known``.
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(known)}."
        raise TrompeError(f"There is no {kind} '{name}'; {hint}")


def text(name: str, described: Any) -> str:
    """The text that `build` reads back as the dataclass ``described``."""
    options = []
    for field in fields(described):
        value = getattr(described, field.name)
        if isinstance(value, Tensor):
            options.append(f"{field.name}=tensor{tuple(value.shape)}")
        elif value is not None and value != field.default:
            options.append(f"{field.name}={value}")
    return f"{name}:{','.join(options)}" if options else name
