"""Explanations that are gradients of the class score, or averages of them."""

from trompe.explainers.gradients.averages import (
    IntegratedGradients,
    IntegratedGradients_T,
    SmoothGrad,
    SmoothGrad_T,
)
from trompe.explainers.gradients.need import ExtraPasses, Gradient
from trompe.explainers.gradients.simple_grad import SimpleGrad, SimpleGrad_T

__all__ = [
    "ExtraPasses",
    "Gradient",
    "IntegratedGradients",
    "IntegratedGradients_T",
    "SimpleGrad",
    "SimpleGrad_T",
    "SmoothGrad",
    "SmoothGrad_T",
]
