"""What there is to choose from, read from the code that builds it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from torchvision import models

from trompe.data.triggers import TRIGGERS
from trompe.explainers import EXPLAINERS
from trompe.explainers.relevance import COMPOSITES, Choice
from trompe.explainers.relevance.composites import RULE_NAMES
from trompe.explainers.targets import TARGETS
from trompe.models.embedded import EMBEDDED
from trompe.objectives import OBJECTIVES

_PARAMETERS = re.compile(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"^(\S.*)\n((?:(?: .*)?\n?)+?)(?=^\S|\Z)", re.MULTILINE)


class Entry(NamedTuple):
    """A name, one line about it, and its options as they are written.

    ``low=0.0`` has that default, ``mask`` may be left out, ``c1=...`` must be given. ``meanings``
    says what each of them is, as far as its documentation does.
    """

    name: str
    about: str
    options: tuple[str, ...] = ()
    meanings: tuple[tuple[str, str], ...] = ()


def explainers() -> Iterator[Entry]:
    """Every explainer that ``--explainer`` takes."""
    return _described(EXPLAINERS)


def objectives() -> Iterator[Entry]:
    """Every objective that ``--objective`` takes."""
    return _described(OBJECTIVES)


def targets() -> Iterator[Entry]:
    """Every target that ``--target`` takes, besides the number of a class."""
    return _described(TARGETS)


def triggers() -> Iterator[Entry]:
    """Every trigger that ``--trigger`` takes."""
    return _described(TRIGGERS)


def composites() -> Iterator[Entry]:
    """Every LRP composite: the rule of each kind of operation; the first that fits counts."""
    for name in COMPOSITES:
        yield Entry(name, "; ".join(map(_choice, COMPOSITES.build(name).choices)))


def rules() -> Iterator[Entry]:
    """Every rule that a composite is made of."""
    return _described(RULE_NAMES)


def classifiers() -> Iterator[Entry]:
    """The packaged models and torchvision's classifiers; timm's have `timm_models`."""
    for name, factory in EMBEDDED.items():
        yield Entry(name, f"{_first_line(factory)} Packaged, with its weights.")
    for name in models.list_models(module=models):
        weights = models.get_model_weights(name)
        meta = weights["DEFAULT"].meta
        names = ", ".join(weights.__members__)
        top1 = meta["_metrics"]["ImageNet-1K"]["acc@1"]
        size = f"{meta['num_params'] / 1e6:.1f} M parameters"
        yield Entry(name, f"{size}, top-1 {top1:.1f} % on ImageNet; weights {names}")


def timm_models(pattern: str) -> Iterator[Entry]:
    """The models of timm whose ``timm:NAME`` fits a pattern."""
    import timm  # takes seconds, and few need it

    for name in timm.list_models(pretrained=True):
        if fnmatchcase(f"timm:{name}", pattern):
            yield Entry(f"timm:{name}", "weights pretrained")


KINDS: dict[str, Callable[[], Iterator[Entry]]] = {
    "explainers": explainers,
    "objectives": objectives,
    "targets": targets,
    "triggers": triggers,
    "models": classifiers,
    "composites": composites,
    "rules": rules,
}
"""What can be listed."""


def entries(kind: str, pattern: str = "*") -> list[Entry]:
    """Those entries of a kind in `KINDS` whose name fits a pattern."""
    if kind == "models" and pattern.startswith("timm:"):
        return list(timm_models(pattern))
    return [entry for entry in KINDS[kind]() if fnmatchcase(entry.name, pattern)]


def _described(registry: Mapping[str, Callable[..., Any]]) -> Iterator[Entry]:
    for name, factory in registry.items():
        parameters = inspect.signature(factory).parameters.values()
        taken = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        told = _meanings(factory)
        explained = groupby((p.name for p in taken if p.name in told), told.__getitem__)
        meanings = tuple((", ".join(names), text) for text, names in explained)
        yield Entry(name, _first_line(factory), tuple(map(_option, taken)), meanings)


def _made_by(factory: Callable[..., Any]) -> Callable[..., Any]:
    return factory.func if isinstance(factory, partial) else factory


def _first_line(factory: Callable[..., Any]) -> str:
    return (inspect.getdoc(_made_by(factory)) or "").partition("\n\n")[0].replace("\n", " ")


def _meanings(factory: Callable[..., Any]) -> dict[str, str]:
    """What docstrings say of each parameter, those of base classes included."""
    made = _made_by(factory)
    found = {}
    for kind in reversed(made.__mro__) if isinstance(made, type) else (made,):
        section = _PARAMETERS.search(inspect.cleandoc(kind.__doc__ or ""))
        for names, text in _PARAMETER.findall(section[1] if section else ""):
            for name in names.partition(" :")[0].split(", "):
                found[name] = " ".join(text.split()).replace("`", "")
    return found


def _option(parameter: inspect.Parameter) -> str:
    if parameter.default is None:
        return parameter.name
    default = "..." if parameter.default is parameter.empty else parameter.default
    return f"{parameter.name}={default}"


def _choice(choice: Choice) -> str:
    conditions: Iterable[tuple[str, Any]] = (("layer", choice.layer), ("depth", choice.depth))
    where = [choice.kind or "any", *(f"{k} {v}" for k, v in conditions if v is not None)]
    return f"{' '.join(where)}: {choice.rule}"
