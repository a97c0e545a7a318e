"""Explainers by name, each imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from trompe.base.registry import Registry
from trompe.errors import TrompeError


def _foreign(library: str, module: str, name: str) -> Callable[..., Any]:
    """A class of `explainers.foreign`, imported when it is needed: its library is optional."""

    def build(method: str, layer: str | None = None, seed: int = 0, **options: Any) -> Any:
        try:
            found = import_module(f"trompe.explainers.foreign.{module}")
        except ModuleNotFoundError as error:
            extra = module.replace("_", "-")
            raise TrompeError(
                f"{library} is not installed; get it with pip install 'trompe[{extra}]'."
            ) from error
        return getattr(found, name)(method=method, layer=layer, seed=seed, options=options)

    build.__doc__ = f"A method of {library}, by its name there; takes that method's options."
    return build


FOREIGN: dict[str, Callable[..., Any]] = {
    "captum": _foreign("Captum", "captum", "CaptumExplainer"),
    "pytorch-grad-cam": _foreign("pytorch-grad-cam", "grad_cam", "CAMExplainer"),
}
"""Explainers of other libraries, by the library's name."""

_OURS = {
    "grad-cam": "cam.grad_cam:GradCAM",
    "grad-cam++": "cam.by_gradient:GradCAMPlusPlus",
    "xgrad-cam": "cam.by_gradient:XGradCAM",
    "layer-cam": "cam.by_gradient:LayerCAM",
    "hires-cam": "cam.by_gradient:HiResCAM",
    "relevance-cam": "cam.relevance_cam:RelevanceCAM",
    "score-cam": "cam.without_gradient:ScoreCAM",
    "eigen-cam": "cam.without_gradient:EigenCAM",
    "rollout": "attention.rollout:Rollout",
    "attention-relevance": "attention.relevance:AttentionRelevance",
    "simple-grad": "gradients:SimpleGrad",
    "smooth-grad": "gradients:SmoothGrad",
    "integrated-gradients": "gradients:IntegratedGradients",
    "lrp": "relevance.lrp:LRP",
    "simple-grad-t": "gradients:SimpleGrad_T",
    "smooth-grad-t": "gradients:SmoothGrad_T",
    "integrated-gradients-t": "gradients:IntegratedGradients_T",
    "lrp-t": "relevance.lrp:LRP_T",
}

EXPLAINERS: Registry[Any] = Registry(
    "explainer",
    "trompe.explainers.explainer:Explainer",
    {**{name: f"trompe.explainers.{place}" for name, place in _OURS.items()}, **FOREIGN},
)
"""Explainers by name; ``-t`` is the form at the target layer, found if not named."""
