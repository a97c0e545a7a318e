"""Explainers: a model, images and classes to maps; one family per file.

Everything here is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trompe.base.registry import Registry
from trompe.errors import TrompeError
from trompe.explainers.explainer import Explainer

if TYPE_CHECKING:
    from trompe.explainers.cam.grad_cam import GradCAM
    from trompe.explainers.gradients import IntegratedGradients, SimpleGrad, SmoothGrad
    from trompe.explainers.recording import Recording
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

_OURS = {
    "grad-cam": "cam.grad_cam:GradCAM",
    "simple-grad": "gradients:SimpleGrad",
    "smooth-grad": "gradients:SmoothGrad",
    "integrated-gradients": "gradients:IntegratedGradients",
    "lrp": "relevance.lrp:LRP",
    "simple-grad-t": "gradients:SimpleGrad_T",
    "smooth-grad-t": "gradients:SmoothGrad_T",
    "integrated-gradients-t": "gradients:IntegratedGradients_T",
    "lrp-t": "relevance.lrp:LRP_T",
}

EXPLAINERS: Registry[Explainer] = Registry(
    "explainer",
    Explainer,  # type: ignore[type-abstract]
    {**{name: f"trompe.explainers.{place}" for name, place in _OURS.items()}, **FOREIGN},
)
"""Explainers by name; ``-t`` is the form at the target layer, found if not named."""


def read(given: Any) -> tuple[Explainer, ...]:
    """Explainers from one or several of them, or of their texts such as ``"lrp-t"``.

    Raises
    ------
    TrompeError
        If a name or an option is unknown, or something is no explainer.
    """
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return tuple(EXPLAINERS.read(one) for one in (given if several else (given,)))


def parse_explainer(spec: str) -> Explainer:
    """Build an explainer from text: ``grad-cam``, ``lrp-t``, ``simple-grad:layer=layer4``.

    Explainers of other libraries name their method: ``captum:method=DeepLift``.

    Raises
    ------
    TrompeError
        If the name or an option is unknown.
    """
    return EXPLAINERS.build(spec)


_PLACES = {place.rpartition(":")[2]: place.rpartition(":")[0] for place in _OURS.values()}
_PLACES["Recording"] = "recording"


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'trompe.explainers' has no attribute '{name}'")
    return getattr(import_module(f"trompe.explainers.{_PLACES[name]}"), name)


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
