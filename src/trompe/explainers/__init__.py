"""Explainers: a model, images and classes to maps; one family per file."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from trompe.base import specs
from trompe.errors import TrompeError
from trompe.explainers.base import Explainer, Recording
from trompe.explainers.cam.grad_cam import GradCAM
from trompe.explainers.gradients import IntegratedGradients, SimpleGrad, SmoothGrad
from trompe.explainers.relevance.lrp import LRP

EXPLAINERS: dict[str, Callable[..., Explainer]] = {
    explainer.name: explainer
    for explainer in (GradCAM, SimpleGrad, SmoothGrad, IntegratedGradients, LRP)
} | {
    f"{explainer.name}-t": partial(explainer, layer=None)
    for explainer in (SimpleGrad, SmoothGrad, IntegratedGradients, LRP)
}
"""Explainers by name; ``-t`` is the form at the target layer, found if not named."""


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


def parse_explainer(spec: str) -> Explainer:
    """Build an explainer from text: ``grad-cam``, ``lrp-t``, ``simple-grad:layer=layer4``.

    Explainers of other libraries name their method: ``captum:method=DeepLift``.

    Raises
    ------
    TrompeError
        If the name or an option is unknown.
    """
    return specs.build("explainer", spec, EXPLAINERS | FOREIGN)


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
]
