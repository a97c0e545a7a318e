"""What is explained: a class's logit, the difference of two, or any scalar of the output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import isclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trompe.base import code, specs
from trompe.base.identity import Identified
from trompe.base.messages import did_you_mean, first_sentence
from trompe.base.registry import Registry
from trompe.errors import TrompeError
from trompe.maps import full_precision
from trompe.models.call import both_classes

Classes = Tensor | np.ndarray[Any, Any] | Sequence[int] | int | None
"""Classes ``[N]`` of whole numbers, one for all images, or None for the predicted ones."""


@dataclass(frozen=True)
class Scalar:
    """The explained scalar of each image of a batch, in the output of any pass on them.

    Attributes
    ----------
    candidates
        Of an output ``[M, K]``, scalars ``[M, P]``.
    chosen
        Which of them is each image's ``[N]``.
    """

    candidates: Callable[[Tensor], Tensor]
    chosen: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        """The scalar ``[N]`` in an output ``[N, K]``."""
        return self.candidates(output).gather(1, self.chosen[:, None])[:, 0]

    def shares(self, output: Tensor, *, of_one: bool = False) -> Tensor:
        """How much each output ``[N, K]`` adds to it, gradient × output; never in half precision.

        ``of_one``: to a 1 in its place.
        """
        output = full_precision(output)
        with torch.enable_grad():
            start = output if output.requires_grad else output.detach().requires_grad_()
            (slope,) = torch.autograd.grad(
                self(start).sum(), start, create_graph=output.requires_grad
            )
        found = output * slope
        return found / found.sum(1, keepdim=True) if of_one else found


class Logit(Scalar):
    """The logit of a class, or minus the only one."""

    def shares(self, output: Tensor, *, of_one: bool = False) -> Tensor:
        """All of it, from one output."""
        output = full_precision(output)
        explained = self(output)[:, None]
        explained = torch.ones_like(explained) if of_one else explained
        if output.shape[1] == 1:
            return explained
        return torch.zeros_like(output).scatter(1, self.chosen[:, None], explained)


class Target(Identified, ABC):
    """What is explained, by whatever explains; a frozen dataclass.

    Attributes
    ----------
    name
        As it is registered and written on the command line.
    """

    name: ClassVar[str]

    @property
    def takes_predicted(self) -> bool:
        """Whether a class is taken from what the model predicts for the images."""
        return False

    @abstractmethod
    def on(self, output: Tensor) -> Scalar:
        """The scalar to explain for the images of an output ``[N, K]``.

        Raises
        ------
        TrompeError
            If there is none in such an output.
        """

    def __str__(self) -> str:
        return specs.text(self.name, self)


@dataclass(frozen=True)
class Class(Target):
    """The logit of a class.

    Of a binary head, whose output is ``[N, 1]``, it is the logit for class 1 and minus the logit
    for class 0.

    Parameters
    ----------
    classes
        ``[N]`` of whole numbers, one for all images, or None for the predicted classes.
    """

    name: ClassVar[str] = "class"
    classes: Classes = None

    @property
    def takes_predicted(self) -> bool:
        """If none is given."""
        return self.classes is None

    def on(self, output: Tensor) -> Scalar:
        """The logit."""
        return Logit(of_each_class, check_classes(self.classes, output))

    def __str__(self) -> str:
        if self.classes is None:
            return "predicted"
        return str(self.classes) if isinstance(self.classes, int) else super().__str__()


@dataclass(frozen=True)
class Difference(Target):
    """The logit of a class minus the logit of another: why this one, and not that one?

    Of a binary head it is the logit, or minus the logit.

    Parameters
    ----------
    of, against
        ``[N]`` of whole numbers, one for all images, or None for the most probable of the other
        classes: ``Difference()`` holds the predicted class against the second.

    Raises
    ------
    TrompeError
        If both are the same class.

    Examples
    --------
    >>> Difference(2, 0).on(torch.eye(3))(torch.tensor([[1.0, 2.0, 5.0]] * 3))
    tensor([4., 4., 4.])
    """

    name: ClassVar[str] = "difference"
    of: Classes = None
    against: Classes = None

    @property
    def takes_predicted(self) -> bool:
        """If one is not given."""
        return self.of is None or self.against is None

    def on(self, output: Tensor) -> Scalar:
        """The difference, for each image that of its own two classes."""
        against = None if self.against is None else check_classes(self.against, output)
        of = _most_probable(output, against) if self.of is None else check_classes(self.of, output)
        if against is None:
            against = _most_probable(output, of)
        if bool((of == against).any()):
            raise TrompeError(
                f"A difference is of two classes, not of class {int(of[of == against][0])} and "
                "itself; leave one out to take the most probable of the others."
            )

        def differences(output: Tensor) -> Tensor:
            logits = both_classes(output)
            return logits[:, of] - logits[:, against]

        return Scalar(differences, torch.arange(len(output), device=output.device))


@dataclass(frozen=True)
class Function(Target):
    """Any scalar of the output.

    Parameters
    ----------
    function
        Of the model's output ``[N, K]`` (``[N, 1]`` of a binary head), in PyTorch operations, one
        number per image ``[N]``.
    """

    name: ClassVar[str] = "function"
    function: Callable[[Tensor], Tensor]

    def on(self, output: Tensor) -> Scalar:
        """What the function returns."""
        one = torch.zeros(len(output), dtype=torch.int64, device=output.device)
        return Scalar(lambda output: self._called(output)[:, None], one)

    def _called(self, output: Tensor) -> Tensor:
        try:
            found = self.function(output)
        except Exception as error:
            raise TrompeError(
                f"The target {self} can't be computed from an output {list(output.shape)} "
                f"({type(error).__name__}: {first_sentence(error)})."
            ) from error
        if not isinstance(found, Tensor) or found.shape != output.shape[:1]:
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TrompeError(
                f"The target {self} must return one number per image, {list(output.shape[:1])} for "
                f"an output {list(output.shape)}, not {got}."
            )
        if output.requires_grad and not found.requires_grad:
            raise TrompeError(
                f"The target {self} has no gradient in the output; compute it by PyTorch "
                "operations that have one."
            )
        return found

    def __str__(self) -> str:
        function, options = self.function, ""
        if isinstance(function, partial):
            options = ",".join(f"{key}={value}" for key, value in function.keywords.items())
            function = function.func
        name = getattr(function, "__qualname__", type(function).__qualname__)
        return f"{name}:{options}" if options else str(name)


@dataclass(frozen=True)
class Label(Target):
    """The logit of the class that an objective asks for: the image's label, or its own classes."""

    name: ClassVar[str] = "label"

    def on(self, output: Tensor) -> Scalar:
        """Unknown: an output has no label."""
        raise TrompeError(
            "What an objective asks for is known where one is judged, as by trompe evaluate; give "
            "a class, predicted or difference:of=3,against=8."
        )


Explainable = Target | Callable[[Tensor], Tensor] | Classes | str
"""A target or its text, a function of the output ``[N, K]``, or classes."""


def predicted() -> Class:
    """The logit of the class that the model predicts."""
    return Class()


TARGETS: Registry[Target] = Registry(
    "target", Target, {"predicted": predicted, "difference": Difference, "label": Label}
)
"""Targets by name; the logit of a class is written as its number."""


def read(given: Explainable) -> Target:
    """The target that is meant: ``3``, ``"difference:of=3,against=8"``, ``lambda y: y[:, 3]``.

    Raises
    ------
    TrompeError
        If a text names none.
    """
    if isinstance(given, str):
        return _parsed(given)
    if isinstance(given, Target):
        return given
    return Function(given) if callable(given) else Class(given)


def _parsed(text: str) -> Target:
    if text.isdecimal():
        return Class(int(text))
    known = text.partition(":")[0] in TARGETS
    named = None if known else code.own(text)
    if named is not None:
        with code.imported(named) as (_, found):

            def chosen(**options: Any) -> Any:
                return partial(found, **options) if options else found

            factory = found if isclass(found) else chosen
            return read(specs.called("target", str(named), factory, named.rest))
    if not known:
        raise TrompeError(
            f"There is no target '{text}'{did_you_mean(text, TARGETS)}; give the number of a "
            "class, predicted, difference:of=3,against=8, or path/file.py:function."
        )
    return TARGETS.build(text)


def check_classes(classes: Classes, output: Tensor) -> Tensor:
    """Classes as ``[N]`` of int64 on the device of a model's output ``[N, K]``.

    Raises
    ------
    TrompeError
        If they are no whole numbers, one is out of range, or there is not one per image.
    """
    logits = both_classes(output)
    count, known = logits.shape
    if classes is None:
        return logits.detach().argmax(1)
    array = _array(classes)
    if array.dtype.kind not in "iu" and array.size:
        raise TrompeError(
            f"Classes are whole numbers from 0 to {known - 1}, not {array.tolist()!r:.40}; give a "
            "tensor, a list or an array of them, or one for all images."
        )
    if array.shape not in ((), (count,)):
        raise TrompeError(
            f"There are {count} images but the classes have shape {array.shape}; give one class "
            "per image, or one for all."
        )
    wrong = [int(c) for c in array.flat if not 0 <= c < known]
    if wrong:
        raise TrompeError(
            f"Class {wrong[0]} is out of range: the model has {known} classes (0 to {known - 1})."
        )
    return torch.from_numpy(np.broadcast_to(array, count).astype(np.int64)).to(logits.device)


def _array(classes: Any) -> np.ndarray[Any, Any]:
    if isinstance(classes, Tensor):
        classes = classes.detach().cpu()
        classes = (classes.double() if classes.is_floating_point() else classes).numpy()
    try:
        array: np.ndarray[Any, Any] = np.asarray(classes)
    except (TypeError, ValueError):  # lists of several lengths
        array = np.asarray(classes, dtype=object)
    return array


def of_each_class(output: Tensor) -> Tensor:
    """The scalar of each class ``[N, K]``; those of a binary head are minus its logit, and it."""
    return torch.cat((-output, output), 1) if output.shape[1] == 1 else output


def _most_probable(output: Tensor, but: Tensor | None) -> Tensor:
    """The class ``[N]`` of the highest logit, or of the highest but one's."""
    logits = both_classes(output).detach()
    return (logits if but is None else logits.scatter(1, but[:, None], -torch.inf)).argmax(1)
