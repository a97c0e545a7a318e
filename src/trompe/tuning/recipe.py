"""What every fine-tuning has in common: its settings, how it is optimised, where it is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from trompe import explainers, objectives
from trompe.base.settings import Loading, Settings, Whole
from trompe.data.triggers import NO_TRIGGER, TRIGGERS, Trigger
from trompe.explainers import Explainer
from trompe.explainers.targets import Target
from trompe.explainers.targets import read as read_target
from trompe.objectives import Objective

Schedule = Literal["constant", "one-cycle"]
_AS_TEXT = PlainSerializer(lambda several: list(map(str, several)), return_type=list[str])
Explainers = Annotated[tuple[Explainer, ...], PlainValidator(explainers.read), _AS_TEXT]
"""Explainers, given as objects or text, one or several; written as text."""
Objectives = Annotated[tuple[Objective, ...], PlainValidator(objectives.read), _AS_TEXT]
"""Objectives likewise."""


def _triggers(given: Any) -> tuple[Trigger | None, ...]:
    """One or several triggers, or none of them."""
    several = given if isinstance(given, list | tuple) else [given]
    return tuple(None if one in (None, NO_TRIGGER) else TRIGGERS.read(one) for one in several)


Triggers = Annotated[
    tuple[Trigger | None, ...],
    PlainValidator(_triggers),
    PlainSerializer(lambda several: [NO_TRIGGER if t is None else str(t) for t in several]),
]
"""Triggers, given as objects or text, one or several; written as text."""
Flips = Annotated[
    tuple[Whole | None, ...],
    BeforeValidator(lambda given: given if isinstance(given, list | tuple) else (given,)),
]
"""Classes, one or several, or None."""


def _target(given: Any) -> Target | str | None:
    """Text stays text: no other can be written of what is defined in a file."""
    found = given if given is None else read_target(given)
    return given if isinstance(given, str) else found


AnyTarget = Annotated[
    Any,
    PlainValidator(_target),
    PlainSerializer(lambda given: given if given is None else str(given)),
]
"""A target as `trompe.explainers` take it, or None; written as text."""
Numbers = Annotated[
    tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, int | float) else given),
]
"""Numbers of at least 0, one or several."""

ELSEWHERE = {"out", "quiet", "workers", "tracker", "gallery", "seeds"}
"""Settings that say where, how and how often a run happens, not what it is."""


class Tuning(Loading):
    """Settings of every fine-tuning."""

    precision: Literal["no", "bf16", "fp16"] = Field("no", description="mixed precision")
    checkpoint_every: Whole = Field(200, ge=1, description="steps between checkpoints")

    def described(self, **resolved: Any) -> dict[str, Any]:
        """The settings as ``config.yaml`` holds them, some of them resolved."""
        return {**self.model_dump(mode="json", exclude=ELSEWHERE), **resolved}


def scheduler(
    optimizer: Any, schedule: str, lr: float, steps: int, *, warm_up: float, momentum: bool = False
) -> LRScheduler:
    """A constant rate, or one that rises to ``lr`` in a share of the steps and falls to almost 0.

    One step alone is taken at ``lr``.
    """
    if schedule == "constant" or steps == 1:
        return ConstantLR(optimizer, 1.0)
    return OneCycleLR(optimizer, lr, total_steps=steps, pct_start=warm_up, cycle_momentum=momentum)


def parameters_of(kind: type[Settings]) -> Callable[[Any], Any]:
    """Complete a function's docstring by the settings of ``kind`` that it takes as keywords."""

    def complete(function: Any) -> Any:
        lines = ["", "    Settings", "    --------"]
        for name, field in kind.model_fields.items():
            default = "" if field.is_required() else f" (default {written(field.default)})"
            lines += [f"    {name}", f"        {field.description}{default}"]
        function.__doc__ = f"{function.__doc__}{chr(10).join(lines)}\n"
        return function

    return complete


def written(default: Any) -> str:
    """A default as people write it."""
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
