from .attention.relevance import AttentionRelevance
from .attention.rollout import Rollout
from .cam.by_gradient import GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from .cam.grad_cam import GradCAM
from .cam.relevance_cam import RelevanceCAM
from .cam.without_gradient import EigenCAM, ScoreCAM
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
    "AttentionRelevance",
    "EigenCAM",
    "Explained",
    "Explainer",
    "GradCAM",
    "GradCAMPlusPlus",
    "HiResCAM",
    "IntegratedGradients",
    "LayerCAM",
    "Need",
    "Recording",
    "RelevanceCAM",
    "Rollout",
    "ScoreCAM",
    "Service",
    "SimpleGrad",
    "Site",
    "SmoothGrad",
    "XGradCAM",
    "parse_explainer",
    "read",
]
