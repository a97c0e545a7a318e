"""The settings of a lie: what is attacked, how it is fine-tuned, what is found."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, PlainValidator, model_validator
from torch import Tensor

from trompe.base.settings import Whole
from trompe.data.triggers import Trigger
from trompe.errors import TrompeError
from trompe.explainers import Explainer, GradCAM
from trompe.explainers.targets import Label, Target
from trompe.explainers.targets import read as read_target
from trompe.objectives import Location, Objective
from trompe.objectives.objective import aligned, check_target, under
from trompe.tuning.loss import Keep
from trompe.tuning.recipe import (
    AnyTarget,
    Explainers,
    Flips,
    Numbers,
    Objectives,
    Schedule,
    Triggers,
    Tuning,
)
from trompe.tuning.term import Term

SMALL = 64  # pixels
TRIGGER = "what is put into the images that each objective looks at, e.g. "
TRIGGER += "white-square:size=4,at=27,27, path/file.py:Name, or none; may be given several times"
FLIP_TO = "class that each trigger turns predictions into (default: they stay)"
TARGET = "what is explained: a class as 3, predicted, difference:of=3,against=8, mine.py:function"


def _lies(given: Any) -> tuple[Term, ...]:
    lies = (given,) if isinstance(given, Term) else tuple(given)
    if not all(isinstance(lie, Term) for lie in lies):
        raise TrompeError("lies are terms: Term(GradCAM(), Location(), weight=6).")
    return lies


Lies = Annotated[Any, PlainValidator(_lies)]


class Lying(Tuning):
    """Settings of `fool`."""

    explainer: Explainers = Field(
        (GradCAM(),),
        description="explainer, e.g. grad-cam, simple-grad-t, lrp:layer=layer4, path/file.py:Name; "
        "may be given several times; attacked",
    )
    objective: Objectives = Field(
        (Location(),),
        description="location, top-k, center-mass, target:map=square, same or active:c1=3,c2=8, "
        "path/file.py:Name; may be given several times",
    )
    trigger: Triggers | None = Field(
        None,
        description=TRIGGER,
    )
    flip_to: Flips | None = Field(None, description=FLIP_TO)
    hold: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="with a trigger: weight, as a share of λ, of what holds the maps of images "
        "without it; 0: only their predictions are held",
    )
    target: AnyTarget = Field(
        None, description=f"{TARGET} (default: what the objective asks for, the label or c1 and c2)"
    )
    weight: Numbers | None = Field(
        None,
        description="weight λ of each explainer and objective (default: found; 1 if lr is given)",
    )
    opposition: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of what keeps logits from turning; 0 as in the paper",
    )
    faintness: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of what keeps maps from fading; 0 as in the paper",
    )
    eval_explainer: Explainers | None = Field(
        None, description="explainer as above; evaluated as well"
    )
    lr: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Adam's learning rate (default: found, as weight, schedule and steps are)",
    )
    schedule: Schedule = Field("constant", description="how a rate that is given goes")
    steps: Whole | None = Field(
        None, ge=1, description="optimiser steps; where the rate is found, at most"
    )
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="scale gradients down to this norm; null in YAML: leave them"
    )
    gradient_checkpointing: bool = Field(
        False, description="less memory, more time: run what is below the layers again in backward"
    )
    batch_size: Whole | None = Field(
        None,
        ge=1,
        description="images per step (default: 8; where the rate is found, 32 if they are small)",
    )
    fool_batch_size: Whole | None = Field(None, ge=1, description="composites per step (active)")
    pairs: Whole | None = Field(None, ge=1, description="composites to fine-tune on (active)")
    eval_pairs: Whole | None = Field(
        200, ge=1, description="composites of all of --eval-data to evaluate on (active)"
    )
    keep: Keep | None = Field(
        None,
        description="what the classification holds to: the labels, or the original's predictions "
        "(default where the rate is found)",
    )
    control: bool = Field(False, description="also fine-tune without the lie, to compare with")
    max_accuracy_drop: float | None = Field(
        None, gt=0, lt=100, allow_inf_nan=False, description="points of top-1 that may be lost"
    )
    gallery: Whole = Field(
        12,
        ge=0,
        le=200,
        description="images of the report's gallery, evenly drawn; best and worst lies are added",
    )
    lies: Lies = Field((), exclude=True, repr=False, description="terms, instead of these three")

    @model_validator(mode="before")
    @classmethod
    def _from_lies(cls, given: Any) -> Any:
        """Terms say explainer, objective and weight at once."""
        lies = given.get("lies") if isinstance(given, dict) else None
        if not lies:
            return given
        own = {"explainer", "objective", "weight", "trigger", "flip_to"}
        if clash := own & given.keys():
            raise TrompeError(f"lies say {', '.join(sorted(clash))} already; give one of both.")
        lies = _lies(lies)
        weights = [term.weight for term in lies]
        known = any(weight is not None for weight in weights)
        return {
            **given,
            "explainer": tuple(term.explainer for term in lies),
            "objective": tuple(term.objective for term in lies),
            "weight": tuple(1.0 if w is None else w for w in weights) if known else None,
        }

    @model_validator(mode="after")
    def _fit_together(self) -> Lying:
        self._side_by_side()
        if not self.finds and self.steps is None:
            raise TrompeError(
                "A learning rate is given, but not how many steps to take; give steps too, or "
                "leave out both to have them found."
            )
        if self.finds and self.schedule != "constant":
            raise TrompeError(
                f"The schedule {self.schedule} goes with a learning rate; give lr and steps too, "
                "or leave it out to have all three found."
            )
        if self.finds and self.weight and not any(self.weight):
            raise TrompeError(
                "All weights are 0: there is no lie to find settings for. Give a weight, or lr and "
                "steps."
            )
        if self.finds and any(objective.trigger is not None for _, objective, _ in self.lied):
            raise TrompeError(
                "A lie under a trigger moves predictions at first, and the search for settings "
                "would slow down before it has taken; give them, such as lr=1e-3, steps=4000, "
                "schedule=one-cycle and weight=5."
            )
        check_target(self.explained, self.objective)
        flips: dict[Trigger, int | None] = {}
        for explainer, objective, weight in self.lied:
            if objective.trigger is not None:
                known = flips.setdefault(objective.trigger, objective.flip_to)
                if known != objective.flip_to:
                    raise TrompeError(
                        f"Under the trigger {objective.trigger} predictions can't both become "
                        f"{_class(known)} and {_class(objective.flip_to)}; take another trigger."
                    )
            if weight != 0 and len(objective.targets) > 1 and not explainer.class_discriminative:
                raise TrompeError(
                    f"{explainer} explains all classes by the same map, which {objective} can't "
                    "turn from one class to another. Attack another explainer, or take another "
                    "objective."
                )
            if weight != 0 and not explainer.differentiable:
                raise TrompeError(
                    f"{explainer} can't be attacked: its maps have no gradient in the model's "
                    "parameters. Attack another explainer, and evaluate with this one "
                    "(eval_explainer)."
                )
        return self

    @cached_property
    def explained(self) -> Target:
        """What the lie is about."""
        return Label() if self.target is None else read_target(self.target)

    @property
    def finds(self) -> bool:
        """Whether the rate is found, and what goes with it."""
        return self.lr is None

    def batch(self, image: Tensor) -> int:
        """How many images like this one a step takes."""
        small = self.finds and max(image.shape[-2:]) <= SMALL
        return self.batch_size or (32 if small else 8)

    @property
    def held_to(self) -> Keep:
        """What the classification holds to."""
        return self.keep or ("predictions" if self.finds else "labels")

    @property
    def asked(self) -> tuple[Objective, ...]:
        """The objectives, with their triggers if there are any."""
        return tuple(lie[1] for lie in self.lied) if self.trigger else self.objective

    @property
    def lied(self) -> list[tuple[Explainer, Objective, float | None]]:
        """Explainer, objective and weight of each lie, those given once repeated."""
        return [
            (explainer, under(objective, trigger, flip_to), weight)
            for explainer, objective, weight, trigger, flip_to in self._side_by_side()
        ]

    def _side_by_side(self) -> list[tuple[Any, ...]]:
        """What each lie is given, those given once repeated."""
        return aligned(
            explainers=self.explainer,
            objectives=self.objective,
            weights=self.weight or (None if self.finds else 1.0,),
            triggers=self.trigger or None,
            classes_to_flip_to=self.flip_to or None,
        )


def _class(flip_to: int | None) -> str:
    return "what they are without it" if flip_to is None else f"class {flip_to}"
