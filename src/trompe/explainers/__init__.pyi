from .cam.grad_cam import GradCAM
from .explainer import Explainer, parse_explainer, read
from .gradients import IntegratedGradients, SimpleGrad, SmoothGrad
from .needs import Explained, Need, Service
from .recording import Recording
from .registry import EXPLAINERS, FOREIGN
from .relevance.lrp import LRP
from .sites import Site

__all__ = [
    "EXPLAINERS",
    "FOREIGN",
    "LRP",
    "Explained",
    "Explainer",
    "GradCAM",
    "IntegratedGradients",
    "Need",
    "Recording",
    "Service",
    "SimpleGrad",
    "Site",
    "SmoothGrad",
    "parse_explainer",
    "read",
]
