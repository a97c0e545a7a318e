"""Explainers: a model, images and classes to maps; one family per file."""

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any

from trompe.base.registry import Registry
from trompe.errors import TrompeError
from trompe.explainers.base import Explainer, Recording
from trompe.explainers.cam.grad_cam import GradCAM
from trompe.explainers.gradients import IntegratedGradients, SimpleGrad, SmoothGrad
from trompe.explainers.relevance.lrp import LRP


def _foreign(library: str, module: str, name: str) -> Callable[..., Explainer]:
    """A class of `explainers.foreign`, imported when it is needed: its library is optional."""

    def build(method: str, layer: str | None = None, seed: int = 0, **options: Any) -> Explainer:
        try:
            found = import_module(f"trompe.explainers.foreign.{module}")
        except ModuleNotFoundError as error:
            extra = module.replace("_", "-")
            raise TrompeError(
                f"{library} is not installed; get it with pip install 'trompe[{extra}]'."
            ) from error
        explainer: Explainer = getattr(found, name)(
            method=method, layer=layer, seed=seed, options=options
        )
        return explainer

    build.__doc__ = f"A method of {library}, by its name there; takes that method's options."
    return build


FOREIGN: dict[str, Callable[..., Explainer]] = {
    "captum": _foreign("Captum", "captum", "CaptumExplainer"),
    "pytorch-grad-cam": _foreign("pytorch-grad-cam", "grad_cam", "CAMExplainer"),
}
"""Explainers of other libraries, by the library's name."""

EXPLAINERS: Registry[Explainer] = Registry(
    "explainer",
    Explainer,  # type: ignore[type-abstract]
    {
        **{e.name: e for e in (GradCAM, SimpleGrad, SmoothGrad, IntegratedGradients, LRP)},
        **{
            f"{e.name}-t": partial(e, layer=None)
            for e in (SimpleGrad, SmoothGrad, IntegratedGradients, LRP)
        },
        **FOREIGN,
    },
)
"""Explainers by name; ``-t`` is the form at the target layer, found if not named."""


def parse_explainer(spec: str) -> Explainer:
    """Build an explainer from text: ``grad-cam``, ``lrp-t``, ``simple-grad:layer=layer4``.

    Explainers of other libraries name their method: ``captum:method=DeepLift``.

    Raises
    ------
    TrompeError
        If the name or an option is unknown.
    """
    return EXPLAINERS.build(spec)


def read(given: str | Explainer | Iterable[str | Explainer]) -> tuple[Explainer, ...]:
    """One or several explainers, each an object or its text.

    Raises
    ------
    TrompeError
        If one is neither, or there is none.
    """
    return EXPLAINERS.read_all(given)


__all__ = [
    "EXPLAINERS",
    "FOREIGN",
    "LRP",
    "Explainer",
    "GradCAM",
    "IntegratedGradients",
    "Recording",
    "SimpleGrad",
    "SmoothGrad",
    "parse_explainer",
    "read",
]
