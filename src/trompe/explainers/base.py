"""What every explainer has in common, and the one forward pass that several of them read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from trompe.base import specs
from trompe.base.identity import Identified
from trompe.errors import TrompeError
from trompe.explainers.relevance import Composite, Observer, Tape, Value, propagate
from trompe.explainers.twice import TwiceDifferentiable, gradients_between
from trompe.maps import full_precision, min_max
from trompe.models.call import logits_of
from trompe.models.layers import evaluation_mode, find_layer, get_layer

INPUT = "input"
_TITLES = {
    "grad-cam": "Grad-CAM",
    "lrp": "LRP",
    "simple-grad": "SimpleGrad",
    "smooth-grad": "SmoothGrad",
    "integrated-gradients": "Integrated Gradients",
    "captum": "Captum",
}


@dataclass(frozen=True)
class Site:
    """A place in the model: the images (``name="input"``), or a module's output or input."""

    name: str
    side: Literal["output", "input"] = "output"

    def __str__(self) -> str:
        return f"{self.name}:input" if self.side == "input" else self.name

    @classmethod
    def parse(cls, layer: str | nn.Module, model: nn.Module) -> Site:
        """Read ``"input"``, ``"layer4"``, ``"features.34:input"`` or a module of ``model``.

        Raises
        ------
        TrompeError
            If the model has no such layer; close names are suggested.
        """
        if isinstance(layer, nn.Module):
            for name, module in model.named_modules():
                if module is layer:
                    return cls(name)
            raise TrompeError(
                f"The given layer ({type(layer).__name__}) is not a module of this model; "
                "take it from the model that is explained, or give its name."
            )
        name, _, side = layer.partition(":")
        if side not in ("", "input", "output"):
            raise TrompeError(
                f"Layer '{layer}' ends in ':{side}'; write ':input' or ':output' (the default)."
            )
        if name != INPUT:
            get_layer(model, name)
        return cls(name, "input" if side == "input" else "output")


@dataclass(frozen=True)
class Explainer(Identified, ABC):
    """Explains a class of a classifier by a map over positions.

    Immutable and stateless: it leaves the model as it found it. Maps follow PyTorch's gradient
    mode: with gradients enabled they can be differentiated in the model's parameters (and in the
    images, if these require it); under ``torch.no_grad()`` they are plain values and cost less.
    """

    name: ClassVar[str]
    differentiable: ClassVar[bool] = True
    reads: ClassVar[Literal["gradients", "relevance", "logits"]] = "gradients"

    layer: str | nn.Module | None

    def __call__(
        self, model: nn.Module, images: Tensor, classes: Tensor | int | None = None
    ) -> Tensor:
        """Explain ``classes`` for ``images`` with the model in evaluation mode.

        Parameters
        ----------
        model
            Any classifier: images to logits ``[N, K]``.
        images
            ``[N, 3, H, W]``, normalised as the model expects.
        classes
            ``[N]`` of int64, one int for all, or None for the predicted classes.

        Returns
        -------
        Tensor
            Raw maps ``[N, h, w]``; `heatmap` brings them to [0, 1].

        Raises
        ------
        TrompeError
            If the layer does not exist, has no spatial output, or a class is out of range.
        """
        with evaluation_mode(model), self.record(model) as forward:
            forward.prepare(images)
            maps: Tensor = forward.maps(classes)
            return maps

    def record(self, model: nn.Module) -> Recording:
        """Share the forward pass of your own training step; see `Recording`."""
        return Recording(model, self)

    def resolve(self, model: nn.Module, image: Tensor) -> Self:
        """Name the layer: the one found with one image ``[1, 3, H, W]`` if ``layer`` is None.

        Raises
        ------
        TrompeError
            If the model has no such layer.
        """
        site = Site.parse(find_layer(model, image) if self.layer is None else self.layer, model)
        return self if self.layer == str(site) else replace(self, layer=str(site))

    def site(self, model: nn.Module) -> Site:
        """Where a resolved explainer looks in ``model``."""
        assert self.layer is not None
        return Site.parse(self.layer, model)

    @property
    def keeps(self) -> tuple[str, ...]:
        """Operations whose inputs are read though no rule reads them."""
        return ()

    def heatmap(self, maps: Tensor) -> Tensor:
        """Bring raw maps to [0, 1] per image, as the paper compares them: min-max."""
        return min_max(maps)

    @abstractmethod
    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Compute raw maps ``[N, h, w]`` at ``site`` from a recorded forward pass."""

    @property
    def family(self) -> str:
        """What kind of explanation this is, at whatever layer: ``-t`` is the form at a layer."""
        at_layer = self.layer != INPUT and fields(self)[0].default is not None
        return f"{self.name}-t" if at_layer else self.name

    @property
    def title(self) -> str:
        """The family as people write it: ``Grad-CAM``, ``LRP_T``."""
        title = _TITLES.get(self.name, self.name)
        return title if self.family == self.name else f"{title}_T"

    def __str__(self) -> str:
        found = self.layer is None and fields(self)[0].default is not None
        return specs.text(f"{self.name}-t" if found else self.name, self)


class Recording:
    """One model, one or several explainers, one forward pass per batch.

    ``with GradCAM().record(model) as forward:`` gives a callable that stands for the model in a
    training step: ``logits = forward(images)``, then ``forward.maps(classes)`` as often as wanted.
    The model runs in whatever mode it is in. Leaving the block frees what was recorded.

    Parameters
    ----------
    model
        The classifier.
    explainers
        One explainer (`maps` returns a tensor) or a sequence of them (it returns a tuple).
    """

    def __init__(self, model: nn.Module, explainers: Explainer | Sequence[Explainer]) -> None:
        self.model = model
        self._single = isinstance(explainers, Explainer)
        self._explainers = (explainers,) if isinstance(explainers, Explainer) else tuple(explainers)
        self._recorded: Recorded | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._recorded = None

    def __call__(self, images: Tensor) -> Tensor:
        """Run the model once on ``images`` ``[N, 3, H, W]`` and return its logits ``[N, K]``."""
        recorded = self.prepare(images)
        return recorded.logits if recorded.differentiable else recorded.logits.detach()

    def prepare(self, images: Tensor) -> Recorded:
        """Take ``images`` to explain; the model runs on them once something asks for it."""
        self._recorded = None
        self._explainers = tuple(e.resolve(self.model, images[:1]) for e in self._explainers)
        self._sites = tuple(e.site(self.model) for e in self._explainers)
        self._recorded = Recorded(self.model, images, self._explainers)
        return self._recorded

    def maps(self, classes: Tensor | int | None = None) -> Any:
        """Raw maps ``[N, h, w]`` of ``classes`` (``[N]``, one int, or None for the predicted)."""
        if self._recorded is None:
            raise TrompeError("There is nothing to explain yet: call forward(images) first.")
        explained = Explained(self._recorded, classes)
        with torch.inference_mode(False), torch.set_grad_enabled(self._recorded.differentiable):
            maps = tuple(
                explainer.attribute(site, explained)
                for explainer, site in zip(self._explainers, self._sites, strict=True)
            )
        return maps[0] if self._single else maps

    def heatmaps(self, classes: Tensor | int | None = None) -> Any:
        """Like `maps`, brought to [0, 1] by each explainer's `heatmap`."""
        maps = self.maps(classes)
        if self._single:
            return self._explainers[0].heatmap(maps)
        return tuple(e.heatmap(m) for e, m in zip(self._explainers, maps, strict=True))


class Recorded:
    """One forward pass, once its logits are asked for, and the tensors of it that are kept."""

    def __init__(self, model: nn.Module, images: Tensor, explainers: Sequence[Explainer]) -> None:
        self.gradient_sites = {e.site(model) for e in explainers if e.reads == "gradients"}
        self.relevance_sites = {e.site(model) for e in explainers if e.reads == "relevance"}
        self.model = model
        self.images = images
        self.differentiable = torch.is_grad_enabled() and (
            images.requires_grad or any(p.requires_grad for p in model.parameters())
        )
        self.tensors: dict[Site, Tensor] = {}
        self.values: dict[Site, Value] = {}
        self.tape = Tape(model, keep={name for e in explainers for name in e.keeps})
        self.twice = TwiceDifferentiable() if self.differentiable else None

    @cached_property
    def logits(self) -> Tensor:
        """Those of the pass, which runs now unless it has."""

        def tap(site: Site, tensor: Tensor) -> Tensor:
            live = tensor
            with self.tape.paused():
                if site in self.gradient_sites:
                    torch.set_grad_enabled(True)
                    kept = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
                    self.tensors[site] = kept
                    live = kept.clone()
                if site in self.relevance_sites:
                    self.values[site] = self.tape.start(tensor, live)
                else:
                    self.tape.rename(tensor, live)
            return live

        taps = dict.fromkeys(self.gradient_sites | self.relevance_sites, tap)
        recorder = self.tape if self.relevance_sites else nullcontext()
        return run(self.model, self.images, taps, self.twice, recorder)


class Explained:
    """A class per image, on one recorded forward pass; shared by all explainers of a batch."""

    def __init__(self, recorded: Recorded, classes: Tensor | int | None) -> None:
        self.recorded = recorded
        self._given = classes
        self._relevance: dict[tuple[Composite, bool], dict[Value, Tensor]] = {}

    @cached_property
    def classes(self) -> Tensor:
        """The explained classes ``[N]``."""
        return check_classes(self._given, self.recorded.logits)

    @cached_property
    def gradients(self) -> dict[Site, Tensor]:
        """∂y_c/∂A at every recorded site, from one backward pass; never in half precision."""
        recorded = self.recorded
        sites = sorted(recorded.gradient_sites, key=str)
        with torch.enable_grad():
            score = recorded.logits.gather(1, self.classes[:, None]).sum()
        tensors = [recorded.tensors[site] for site in sites]
        gradients = gradients_between(score, tensors, recorded.twice, retain_graph=True)
        return {
            site: full_precision(_reached(site, gradient))
            for site, gradient in zip(sites, gradients, strict=True)
        }

    @property
    def score(self) -> Tensor:
        """The logit of each image's class ``[N]``; never in half precision."""
        return full_precision(self.recorded.logits).gather(1, self.classes[:, None])[:, 0]

    def relevance(
        self,
        site: Site,
        composite: Composite,
        *,
        fold: bool = False,
        observer: Observer | None = None,
    ) -> Tensor:
        """Relevance at ``site`` that starts as the logit of the explained class."""
        recorded = self.recorded
        if (composite, fold) not in self._relevance:
            start = full_precision(torch.zeros_like(recorded.logits))
            self._relevance[composite, fold] = propagate(
                recorded.tape,
                recorded.tape.value(recorded.logits),
                start.scatter(1, self.classes[:, None], self.score[:, None]),
                composite,
                set(recorded.values.values()),
                fold=fold,
                observer=observer,
            )
        return self._relevance[composite, fold][recorded.values[site]]

    def gradient_of(
        self, images: Tensor, site: Site, replace: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """∂y_c/∂A at ``site`` in an extra pass on other images, or with A replaced.

        The extra pass runs in evaluation mode, so that it leaves no trace in the model.
        """
        kept: list[Tensor] = []

        def tap(_: Site, tensor: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            tensor = tensor if replace is None else replace(tensor)
            kept.append(tensor if tensor.requires_grad else tensor.detach().requires_grad_())
            return kept[0].clone()

        twice = self.recorded.twice
        with evaluation_mode(self.recorded.model):
            logits = run(self.recorded.model, images, {site: tap}, twice)
        classes = self.classes if self._given is None else check_classes(self._given, logits)
        with torch.enable_grad():
            score = logits.gather(1, classes[:, None]).sum()
        (gradient,) = gradients_between(score, kept, twice)
        return full_precision(_reached(site, gradient))

    def activation(self, images: Tensor, site: Site) -> Tensor:
        """The tensor at ``site`` in an extra pass, in evaluation mode."""
        kept: list[Tensor] = []

        def tap(_: Site, tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor.clone()

        with evaluation_mode(self.recorded.model):
            run(self.recorded.model, images, {site: tap}, self.recorded.twice)
        return kept[0]


def _reached(site: Site, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise TrompeError(
            f"The model's output does not depend on layer '{site.name}'; choose a layer that the "
            "output is computed from."
        )
    return gradient


Tap = Callable[[Site, Tensor], Tensor]


def run(
    model: nn.Module,
    images: Tensor,
    taps: Mapping[Site, Tap],
    twice: TwiceDifferentiable | None,
    recorder: AbstractContextManager[Any] | None = None,
) -> Tensor:
    """One forward pass in which each tap may keep and replace the tensor at its site."""
    differentiable = twice is not None
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(differentiable))
        stack.enter_context(twice or nullcontext())
        stack.enter_context(recorder or nullcontext())
        images = images.clone() if images.is_inference() else images
        images = images if differentiable else images.detach()
        for site, tap in taps.items():
            if site.name == INPUT:
                images = tap(site, images)
            else:
                stack.enter_context(_tapped(model, site, tap))
        return logits_of(model(images))


@contextmanager
def _tapped(model: nn.Module, site: Site, tap: Tap) -> Iterator[None]:
    module = get_layer(model, site.name)

    def checked(tensor: Any) -> Tensor:
        if not isinstance(tensor, Tensor) or tensor.dim() != 4:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TrompeError(
                f"Layer '{site.name}' has the {site.side} {got}, but a map needs a tensor "
                "[N, C, h, w]; choose a layer before the features are flattened."
            )
        return tap(site, tensor)

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given = args[0]
        if isinstance(given, list):  # what a DenseNet's layer concatenates first thing
            return ([checked(torch.cat(given, 1))], *args[1:])
        return (checked(given), *args[1:])

    def after(_: nn.Module, __: Any, output: Any) -> Tensor:
        return checked(output)

    hook: Any = (
        module.register_forward_pre_hook(before)
        if site.side == "input"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        hook.remove()


def check_classes(classes: Tensor | int | None, logits: Tensor) -> Tensor:
    """Classes as ``[N]`` of int64 on the logits' device; None means the predicted ones.

    Raises
    ------
    TrompeError
        If a class is out of range, or there is not one class per image.
    """
    count, known = logits.shape
    if classes is None:
        return logits.detach().argmax(1)
    if isinstance(classes, int):
        classes = torch.full((count,), classes)
    if classes.shape != (count,):
        raise TrompeError(
            f"There are {count} images but the classes have shape {tuple(classes.shape)}; "
            "give one class per image."
        )
    if count and not 0 <= int(classes.min()) <= int(classes.max()) < known:
        wrong = next(int(c) for c in classes if not 0 <= c < known)
        raise TrompeError(
            f"Class {wrong} is out of range: the model has {known} classes (0 to {known - 1})."
        )
    return classes.to(logits.device, torch.int64)
