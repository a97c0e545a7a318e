"""Which rule each operation takes: composites by name, and of one's own from Python or YAML."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from trompe.base import code, yaml_text
from trompe.base.identity import Identified
from trompe.base.messages import check_name
from trompe.base.registry import Registry
from trompe.errors import TrompeError
from trompe.explainers.relevance.operations import KINDS, RULES, OperationRule
from trompe.explainers.relevance.record import Operation
from trompe.explainers.relevance.rules import (
    AlphaBeta,
    Box,
    Epsilon,
    Flat,
    Gamma,
    Pass,
    ReleasedSum,
    Rule,
    WSquare,
)

RULE_NAMES: Registry[Rule] = Registry(
    "LRP rule",
    Rule,
    {
        **{
            rule.name: rule
            for rule in (Epsilon, AlphaBeta, Gamma, Flat, WSquare, Box, Pass, ReleasedSum)
        },
        "uniform": partial(Epsilon, gates=True),
        "zero": partial(Epsilon, 0.0),
        "z-plus": partial(AlphaBeta, 1.0, 0.0),
    },
)
"""Rules by the name that they have in a composite's YAML."""


@dataclass(frozen=True)
class Choice(Identified):
    """A rule for the operations that meet every condition given.

    Parameters
    ----------
    rule
        The rule; only for operations of a kind that it is made for (``rule.kinds``).
    kind
        ``"linear"``, ``"convolution"``, ``"sum"``, ``"average-pool"``, ``"layer-norm"``,
        ``"product"`` (of several inputs, as in attention) or ``"softmax"``.
    layer
        Pattern of the module's name, e.g. ``"classifier.*"``.
    depth
        Place among the layers with weights, in the order in which they run: 0 is the first, -1
        the last; a pair stands for both and all between.

    Raises
    ------
    TrompeError
        If there is no such kind, or the rule is not made for it.
    """

    rule: Rule
    kind: str | None = None
    layer: str | None = None
    depth: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind is None:
            return
        check_name("kind of operation", self.kind, dict.fromkeys(KINDS.values()))
        if self.kind not in self.rule.kinds:
            raise TrompeError(
                f"'{self.rule.name}' is no rule for the kind '{self.kind}'; it is made for "
                f"{', '.join(self.rule.kinds)}."
            )

    def fits(self, operation: Operation, count: int) -> bool:
        """Whether the operation, in a network of ``count`` layers with weights, takes the rule."""
        return (
            operation.kind in self.rule.kinds
            and self.kind in (None, operation.kind)
            and (self.layer is None or fnmatchcase(operation.path, self.layer))
            and (self.depth is None or self._reaches(operation.depth, count))
        )

    def _reaches(self, depth: int, count: int) -> bool:
        ends = self.depth if isinstance(self.depth, tuple) else (self.depth, self.depth)
        first, last = (end + count if end < 0 else end for end in ends if end is not None)
        return first <= depth <= last


@dataclass(frozen=True)
class Composite(Identified):
    """A choice of rules; the first one that fits an operation counts.

    Composites of the same choices are equal, whatever they are called.
    """

    name: str
    choices: tuple[Choice, ...]

    def __call__(self) -> Composite:
        """The composite itself: it can be registered as what makes one."""
        return self

    def identity(self) -> Any:
        """The choices."""
        return self.choices

    def __str__(self) -> str:
        return self.name

    def extended(self, name: str, *choices: Choice) -> Composite:
        """A composite in which ``choices`` come before this one's."""
        return Composite(name, (*choices, *self.choices))

    def rule(self, operation: Operation, count: int) -> OperationRule:
        """The rule for an operation in a network of ``count`` layers with weights.

        Raises
        ------
        TrompeError
            If there is none; says how to give it one.
        """
        for choice in self.choices:
            if choice.fits(operation, count):
                return choice.rule
        if operation.kind:
            raise TrompeError(
                f"The composite '{self.name}' has no rule for {operation}, of the kind "
                f"'{operation.kind}'; add one, or extend a composite that has."
            )
        rule = RULES.get(operation.name)
        if rule is None:
            raise TrompeError(
                f"{operation} has no relevance rule; write one: a function of the operation and "
                "its relevance that returns the relevance of each input, decorated with "
                f"@trompe.explainers.relevance.register_rule('{operation.name}'). Or explain a "
                "layer above it."
            )
        return rule


_EPSILON, _Z_PLUS, _ALPHA2_BETA1 = Epsilon(1e-6), AlphaBeta(1, 0, 1e-6), AlphaBeta(2, -1, 1e-6)
_PASS, _FLAT, _BOX = Pass(), Choice(Flat(), depth=0), Choice(Box(), "convolution", depth=0)


def _composite(
    name: str,
    *first: Choice,
    linear: Rule,
    convolution: Rule,
    sums: Rule = _EPSILON,
    layer_norm: Rule = _PASS,
    product: Rule = _EPSILON,
) -> Composite:
    others = {
        "linear": linear,
        "convolution": convolution,
        "sum": sums,
        "average-pool": sums,
        "layer-norm": layer_norm,
        "product": product,
        "softmax": _EPSILON,
    }
    return Composite(name, (*first, *(Choice(rule, kind) for kind, rule in others.items())))


_HEO2019 = _composite(
    "heo2019",
    linear=Epsilon(0.01),
    convolution=AlphaBeta(1, 0, 0.01),
    sums=AlphaBeta(1, 0, 1e-6),
)

_TRANSFORMER: Any = {"linear": _EPSILON, "convolution": Gamma(0.25), "layer_norm": _EPSILON}

COMPOSITES: Registry[Composite] = Registry(
    "LRP composite",
    Composite,
    {
        composite.name: composite
        for composite in (
            _HEO2019,
            _HEO2019.extended("heo2019-released", Choice(ReleasedSum(), "sum")),
            _composite("epsilon", linear=_EPSILON, convolution=_EPSILON, layer_norm=_EPSILON),
            _composite("epsilon-plus", linear=_EPSILON, convolution=_Z_PLUS),
            _composite("z-plus", linear=_Z_PLUS, convolution=_Z_PLUS),
            _composite("epsilon-plus-flat", _FLAT, linear=_EPSILON, convolution=_Z_PLUS),
            _composite("epsilon-alpha2-beta1", linear=_EPSILON, convolution=_ALPHA2_BETA1),
            _composite(
                "epsilon-alpha2-beta1-flat", _FLAT, linear=_EPSILON, convolution=_ALPHA2_BETA1
            ),
            _composite("epsilon-gamma-box", _BOX, linear=_EPSILON, convolution=Gamma(0.25)),
            _composite("cp-lrp", **_TRANSFORMER),
            _composite("attn-lrp", **_TRANSFORMER, product=Epsilon(1e-6, gates=True)),
        )
    },
)
"""Composites by name. ``heo2019`` is the paper's, ``heo2019-released`` what its code does at
residual sums (see `ReleasedSum`), ``z-plus`` that of Relevance-CAM; the others are Zennit's of the
same name.

The box of ``epsilon-gamma-box`` holds any image normalised with ImageNet's mean and deviation; for
another, extend it with ``Choice(Box(low, high), depth=0)``.
"""


def find_composite(composite: str | Path | Composite) -> Composite:
    """A composite by name, of one's own by ``path/file.py:Name`` or ``package.module:Name``, by the
    path of a YAML file, or as it is.

    The file holds the name of a ``base`` composite (``epsilon`` if none is given) and ``rules``
    that come before its own, each with its conditions and options. Both names may be of one's
    own::

        base: epsilon-plus
        rules:
          - {depth: 0, rule: box, low: -2.1, high: 2.6}
          - {layer: "classifier.*", rule: epsilon, epsilon: 0.25}
          - {kind: convolution, depth: [1, 5], rule: gamma, gamma: 0.5}
          - {kind: linear, rule: "my_rules.py:Squared"}

    Raises
    ------
    TrompeError
        If there is no such composite, or the file can't be read or says something unknown.
    """
    if isinstance(composite, str | Path) and Path(composite).suffix in (".yaml", ".yml"):
        return _read(Path(composite))
    return COMPOSITES.read(composite)


def _read(path: Path) -> Composite:
    try:
        code.refuse_found(path, "a file elsewhere")
        content = yaml_text.loaded(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrompeError(f"The composite '{path}' can't be read as YAML: {error}.") from error
    lines = content.get("rules") if isinstance(content, dict) else None
    if (
        not isinstance(lines, list)
        or not content.keys() <= {"base", "rules"}
        or not all(isinstance(line, dict) and "rule" in line for line in lines)
    ):
        raise TrompeError(
            f"The composite '{path}' must hold 'rules', a list of lines like "
            "{kind: convolution, rule: gamma, gamma: 0.5}, and may name a 'base' composite."
        )
    base = find_composite(str(content.get("base", "epsilon")))
    return base.extended(path.stem, *(_choice(line) for line in lines))


def _choice(line: Mapping[str, Any]) -> Choice:
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in line.items()}
    name = str(options.pop("rule"))
    conditions: list[Any] = [options.pop(key, None) for key in ("kind", "layer", "depth")]
    return Choice(_rule(name, options), *conditions)


def _rule(name: str, options: Mapping[str, Any]) -> Rule:
    if name in RULE_NAMES or (named := code.own(name)) is None:
        check_name("LRP rule", name, RULE_NAMES)
        return _made(name, RULE_NAMES[name], options)
    with code.imported(named) as (_, factory):
        return RULE_NAMES.read(_made(name, factory, options) if callable(factory) else factory)


def _made(name: str, factory: Callable[..., Rule], options: Mapping[str, Any]) -> Rule:
    known = inspect.signature(factory).parameters
    for key in options:
        check_name(f"option of the rule '{name}'", key, known)
    return factory(**{key: _number(value) for key, value in options.items()})


def _number(value: Any) -> Any:
    """The number that a person means by 1e-6, which is text in YAML."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
