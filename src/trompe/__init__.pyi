from .data import ImageDataset, Pairs, Shapes, load_data
from .data.preprocessing import Preprocessing
from .errors import TrompeError
from .evaluation import Evaluation, evaluate
from .explainers import (
    LRP,
    AttentionRelevance,
    EigenCAM,
    Explainer,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    IntegratedGradients,
    LayerCAM,
    Recording,
    RelevanceCAM,
    Rollout,
    ScoreCAM,
    SimpleGrad,
    SmoothGrad,
    XGradCAM,
)
from .explainers.targets import Difference
from .models import LoadedModel, load_model
from .objectives import Active, CenterMass, Location, Objective, TopK
from .tuning import Fool, FoolResult, Retrain, Term, Train, TrainResult, fool, train

__all__ = [
    "LRP",
    "Active",
    "AttentionRelevance",
    "CenterMass",
    "Difference",
    "EigenCAM",
    "Evaluation",
    "Explainer",
    "Fool",
    "FoolResult",
    "GradCAM",
    "GradCAMPlusPlus",
    "HiResCAM",
    "ImageDataset",
    "IntegratedGradients",
    "LayerCAM",
    "LoadedModel",
    "Location",
    "Objective",
    "Pairs",
    "Preprocessing",
    "Recording",
    "RelevanceCAM",
    "Retrain",
    "Rollout",
    "ScoreCAM",
    "Shapes",
    "SimpleGrad",
    "SmoothGrad",
    "Term",
    "TopK",
    "Train",
    "TrainResult",
    "TrompeError",
    "XGradCAM",
    "evaluate",
    "fool",
    "load_data",
    "load_model",
    "train",
]
