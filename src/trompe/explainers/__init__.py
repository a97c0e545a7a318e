"""Explainers: a model, images and classes to maps; one family per file."""

from collections.abc import Callable
from functools import partial

from trompe import specs
from trompe.explainers.base import Explainer, Recording
from trompe.explainers.grad_cam import GradCAM
from trompe.explainers.gradients import IntegratedGradients, SimpleGrad, SmoothGrad
from trompe.explainers.lrp import LRP

EXPLAINERS: dict[str, Callable[..., Explainer]] = {
    explainer.name: explainer
    for explainer in (GradCAM, SimpleGrad, SmoothGrad, IntegratedGradients, LRP)
} | {
    f"{explainer.name}-t": partial(explainer, layer=None)
    for explainer in (SimpleGrad, SmoothGrad, IntegratedGradients, LRP)
}
"""Explainers by name; ``-t`` is the form at the target layer, found if not named."""


def parse_explainer(spec: str) -> Explainer:
    """Build an explainer from text: ``grad-cam``, ``lrp-t``, ``simple-grad:layer=layer4``.

    Raises
    ------
    TrompeError
        If the name or an option is unknown.
    """
    return specs.build("explainer", spec, EXPLAINERS)


__all__ = [
    "EXPLAINERS",
    "LRP",
    "Explainer",
    "GradCAM",
    "IntegratedGradients",
    "Recording",
    "SimpleGrad",
    "SmoothGrad",
    "parse_explainer",
]
