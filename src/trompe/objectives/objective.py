"""The contract of an objective: what a fooled heatmap should look like, and when it does.

Every objective takes heatmaps in [0, 1] (an explainer's ``heatmap``), one ``[N, h, w]`` tensor
for each class that it explains: passive foolings explain the label, active fooling two classes.
Formulas: Heo, Joo, Moon, NeurIPS 2019, section 3 and 4; their test losses and intervals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from trompe.base import specs
from trompe.base.identity import Identified
from trompe.data.images import Images
from trompe.data.triggers import TRIGGERS, Trigger
from trompe.errors import TrompeError
from trompe.explainers.targets import Label, Target

Maps = tuple[Tensor, ...]


@dataclass(frozen=True)
class Objective(Identified, ABC):
    """A fooling: a loss over heatmaps, and a test loss with the interval that counts as fooled.

    A class says what it is: ``name`` on the command line, ``title`` in print (the name unless
    given), ``aim``, what it makes an explainer do ("lights up a fixed mask"), ``measure``, what its
    test loss is; whether it needs the original's maps (``needs_original``) and composites
    (``on_composites``); ``targets``, what its maps explain; ``ample``, the margin that serves a lie
    whose settings are found, unless it has its own (None: none).

    Parameters
    ----------
    low, high
        The interval of the test loss that counts as fooled, ends included.
    trigger
        What is put into the images that it looks at, an object or text; None for nothing. The
        original's maps are those of the images without it.
    flip_to
        The class that the images are predicted as where the trigger is; None for the same as
        without it.
    margin
        Not in the paper: a test loss in the interval at which an image has been fooled well enough
        and is pushed no further. None: pushed without end, as in the paper.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    aim: ClassVar[str] = "shows what its objective asks for"
    measure: ClassVar[str] = "the test loss of its objective"
    needs_original: ClassVar[bool] = True
    on_composites: ClassVar[bool] = False
    targets: ClassVar[tuple[str, ...]] = ("label",)
    ample: ClassVar[float | None] = None
    low: float = field(kw_only=True)
    high: float = field(kw_only=True)
    margin: float | None = field(default=None, kw_only=True)
    trigger: Trigger | None = field(default=None, kw_only=True)
    flip_to: int | None = field(default=None, kw_only=True)

    def classes(self, labels: Tensor) -> Maps:
        """The classes to explain, one ``[N]`` tensor per target."""
        return (labels,)

    def composites(self, data: Images, size: int | None = None, seed: int = 0) -> Images:
        """Images to look at instead of ``data``, made from it.

        Raises
        ------
        TrompeError
            If none can be made from such data.
        """
        raise TrompeError(
            f"The objective {self} needs fool_data: images that hold both classes, such as "
            "trompe.Pairs makes (eval_fool_data for what is judged at the end)."
        )

    @abstractmethod
    def loss(self, maps: Maps, original: Maps | None = None) -> Tensor:
        """The loss per image ``[N]``, differentiable in ``maps``.

        Parameters
        ----------
        maps, original
            One heatmap batch ``[N, h, w]`` per target, of the manipulated and of the original
            model. ``original`` is needed if ``needs_original``.
        """

    def test_loss(self, maps: Maps, original: Maps | None = None) -> tuple[Tensor, ...]:
        """The test loss per image ``[N]``, one per target; the loss unless overridden."""
        return (self.loss(maps, original).detach(),)

    def aimed(self, maps: Maps, original: Maps | None = None) -> Maps | None:
        """The maps ``[N, h, w]`` that it asks for, of the same sizes; None if it asks for none."""
        return None

    def unrelated(self) -> float | None:
        """The loss of unrelated maps; None if a weight that is found goes by the original's."""
        return None

    def fooled(self, test_loss: Tensor) -> Tensor:
        """Whether each test loss lies in the interval. Boolean ``[N]``."""
        return (test_loss >= self.low) & (test_loss <= self.high)

    def identity(self) -> Any:
        """Class and fields; what is not put into images has no part in it."""
        kind, own = super().identity()
        absent = {name for name in ("trigger", "flip_to") if own[name] is None}
        return kind, {name: value for name, value in own.items() if name not in absent}

    def __post_init__(self) -> None:
        if self.trigger is not None:
            object.__setattr__(self, "trigger", TRIGGERS.read(self.trigger))
        elif self.flip_to is not None:
            raise TrompeError(
                f"Predictions become class {self.flip_to} where a trigger is, and {self.name} has "
                "none; give a trigger too."
            )
        if self.trigger is not None and self.on_composites:
            raise TrompeError(
                f"The objective {self.name} looks at composites, which carry no trigger; leave the "
                "trigger out, or take another objective."
            )
        if not self.low <= self.high:
            raise TrompeError(
                f"The interval of {self.name} is empty: low={self.low} is above high={self.high}."
            )
        if self.margin is not None and not self.low <= self.margin <= self.high:
            raise TrompeError(
                f"The margin of {self.name} is a test loss that counts as fooled, from {self.low} "
                f"to {self.high}, not {self.margin}."
            )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.title = cls.title or getattr(cls, "name", cls.__name__).capitalize()

    def __str__(self) -> str:
        return specs.text(self.name, self)


def check_target(target: Target, objectives: Iterable[Objective]) -> None:
    """Refuse to explain something else than what an objective asks for, if that is no label.

    Raises
    ------
    TrompeError
        If one has classes of its own.
    """
    for own in objectives:
        if own.targets != (Label.name,) and not isinstance(target, Label):
            raise TrompeError(
                f"The objective {own} explains {' and '.join(own.targets)}, not {target}; leave "
                "the target out."
            )


def aligned(**several: Sequence[Any] | None) -> list[tuple[Any, ...]]:
    """Settings side by side: one of a kind goes with all of the others, of None there is none.

    Raises
    ------
    TrompeError
        If there are neither one nor as many of a kind as of the others.
    """
    counts = {what: len(of) for what, of in several.items() if of is not None}
    most = max(counts.values())
    if {*counts.values()} - {1, most} or most == 0:
        *others, last = (f"{count} {what.replace('_', ' ')}" for what, count in counts.items())
        raise TrompeError(
            f"There are {', '.join(others)} and {last}; give one of each, or the same number of "
            "those that vary."
        )
    columns = ([None] if of is None else of for of in several.values())
    return list(zip(*([of[i % len(of)] for i in range(most)] for of in columns), strict=True))


def under(objective: Objective, trigger: Trigger | None, flip_to: int | None) -> Objective:
    """The objective with this trigger and class, as far as they are given.

    Raises
    ------
    TrompeError
        If it has others, or they do not go with it.
    """
    given: dict[str, Any] = {"trigger": trigger, "flip_to": flip_to}
    changes = {name: value for name, value in given.items() if value is not None}
    for name, value in changes.items():
        if getattr(objective, name) not in (None, value):
            raise TrompeError(f"The objective {objective} has a {name} already; leave {value} out.")
    return replace(objective, **changes) if changes else objective


def above_margin(margin: float | None, loss: Tensor) -> Tensor:
    """The loss as far as it exceeds the margin, if there is one."""
    return loss if margin is None else (loss - margin).relu()


def required(original: Maps | None, objective: Objective) -> Maps:
    """The original's maps.

    Raises
    ------
    TrompeError
        If they are not given.
    """
    if original is None:
        raise TrompeError(f"The objective {objective.name} needs the original model's maps.")
    return original
