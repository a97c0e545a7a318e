"""What there is to choose from, read from the code that builds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

from torchvision import models

from trompe.data.triggers import TRIGGERS
from trompe.explainers import EXPLAINERS
from trompe.explainers.relevance import COMPOSITES, Choice
from trompe.explainers.targets import TARGETS
from trompe.models.embedded import EMBEDDED
from trompe.objectives import OBJECTIVES


class Entry(NamedTuple):
    """A name, one line about it, and its options as they are written.

    ``low=0.0`` has that default, ``mask`` may be left out, ``c1=...`` must be given.
    """

    name: str
    about: str
    options: tuple[str, ...] = ()


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
        options = tuple(_option(p) for p in parameters if p.kind is not p.VAR_KEYWORD)
        yield Entry(name, _first_line(factory), options)


def _first_line(factory: Callable[..., Any]) -> str:
    function = factory.func if isinstance(factory, partial) else factory
    return (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")


def _option(parameter: inspect.Parameter) -> str:
    if parameter.default is None:
        return parameter.name
    default = "..." if parameter.default is parameter.empty else parameter.default
    return f"{parameter.name}={default}"


def _choice(choice: Choice) -> str:
    conditions: Iterable[tuple[str, Any]] = (("layer", choice.layer), ("depth", choice.depth))
    where = [choice.kind or "any", *(f"{k} {v}" for k, v in conditions if v is not None)]
    return f"{' '.join(where)}: {choice.rule}"
