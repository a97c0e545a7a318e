"""What the explainers that other libraries compute have in common."""

from __future__ import annotations

import inspect
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from trompe.base.messages import check_name, first_sentence
from trompe.errors import TrompeError
from trompe.explainers.explainer import Explainer
from trompe.explainers.needs import Explained
from trompe.explainers.sites import INPUT, Site
from trompe.maps import by_maximum, full_precision, min_max
from trompe.models.call import scores_of
from trompe.models.hooks import evaluation_mode

_one_at_a_time = threading.RLock()


@dataclass(frozen=True)
class ForeignExplainer(Explainer):
    """An attribution method of another library, by its name there.

    Its maps have no gradient in the model's parameters: they can be compared and drawn, not
    attacked. It runs a pass of its own, on a model in evaluation mode whose parameters, gradients
    and hooks stay as they are.

    Parameters
    ----------
    method
        The class's name in the library.
    layer
        For a method that explains a layer, the layer's name, a module, or None to find the last
        spatial layer; other methods explain the input.
    seed
        Seed of the method's random numbers.
    options
        Arguments of the method, by their names in the library.

    Raises
    ------
    TrompeError
        If there is no such method or option.
    """

    library: ClassVar[str]
    methods: ClassVar[Mapping[str, type]]
    call: ClassVar[str]
    given: ClassVar[frozenset[str]]
    differentiable: ClassVar[bool] = False
    layer: str | nn.Module | None = None
    method: str = field(kw_only=True)
    seed: int = field(default=0, kw_only=True)
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        check_name(f"{self.library} method", self.method, self.methods)
        known = parameters(self.kind.__init__) | parameters(getattr(self.kind, self.call))
        for key in self.options:
            check_name(f"option of {self.library}'s {self.method}", key, known - self.given)
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in self.options.items()}
        object.__setattr__(self, "options", options)

    @property
    def kind(self) -> Any:
        """The library's class."""
        return self.methods[self.method]

    @property
    def at_layer(self) -> bool:
        """Whether the method explains a layer."""
        return not parameters(self.kind.__init__).isdisjoint(("layer", "target_layers"))

    def resolve(self, model: nn.Module, image: Tensor) -> Self:
        """Name the layer; that of a method without one is the input."""
        return super().resolve(model, image) if self.at_layer else replace(self, layer=INPUT)

    @property
    def family(self) -> str:
        """The library and its method."""
        return f"{self.name}:{self.method}"

    @property
    def title(self) -> str:
        """What the library calls its method."""
        return self.method

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Let the library explain; maps without a graph."""
        if site.call is not None:
            raise TrompeError(
                f"{self.library} chooses the call of a layer itself; give layer={site.name}."
            )
        model = explained.recorded.model
        images = explained.recorded.images.detach().clone().requires_grad_()
        with (
            _one_at_a_time,  # they seed what the whole process draws from
            evaluation_mode(model),
            _untouched(model),
            _seeded(self.seed),
            torch.enable_grad(),
        ):
            try:
                scalar = explained.scalar
                maps = self.explain(Scalars(model, scalar.candidates), images, scalar.chosen, site)
            except TrompeError:
                raise
            except Exception as error:
                raise TrompeError(
                    f"{self.library}'s {self.method} can't explain this model "
                    f"({type(error).__name__}: {first_sentence(error)}); choose another method."
                ) from error
        return full_precision(maps.detach())

    @abstractmethod
    def explain(self, model: Scalars, images: Tensor, chosen: Tensor, site: Site) -> Tensor:
        """Raw maps ``[N, h, w]`` of the chosen outputs ``[N]``, as the library computes them."""

    def options_of(self, function: Callable[..., Any]) -> dict[str, Any]:
        """The options that are parameters of ``function``."""
        return {k: v for k, v in self.options.items() if k in parameters(function)}

    def heatmap(self, maps: Tensor) -> Tensor:
        """At a layer the positive part by its maximum, as Grad-CAM; else magnitude, min-max."""
        return by_maximum(maps) if self.at_layer else min_max(maps.abs())

    def __str__(self) -> str:
        named = {"method": self.method, "layer": self.layer, "seed": self.seed or None}
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()}
        given = [f"{k}={v}" for k, v in {**named, **options}.items() if v is not None]
        return f"{self.name}:{','.join(given)}"


class Scalars(nn.Module):
    """A model that returns scalars ``[N, P]``: the logit of each class, or another target's.

    What the libraries take for a class is the number of one of them.
    """

    def __init__(self, model: nn.Module, candidates: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.candidates = candidates

    def forward(self, images: Tensor) -> Tensor:
        """The scalars ``[N, P]``."""
        return self.candidates(scores_of(self.model(images)))


def parameters(function: Callable[..., Any]) -> set[str]:
    """The names of a function's parameters."""
    return set(inspect.signature(function).parameters)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Give every parameter its ``.grad`` and every module its attributes back."""
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    attributes = {module: dict(vars(module)) for module in model.modules()}
    try:
        for parameter in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, before in attributes.items():
            for name in vars(module).keys() - before.keys():
                del vars(module)[name]
            vars(module).update(before)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what the libraries draw from: PyTorch's and NumPy's global states; give both back."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
