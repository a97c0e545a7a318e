from .audit import AuditReport, audit
from .data import ImageDataset, Pairs, Shapes, load_data
from .data.preprocessing import Preprocessing
from .data.triggers import Blend, Patch, Sinusoid, Trigger
from .errors import TrompeError
from .evaluation import Evaluation, OverSeeds, evaluate, over_seeds
from .explain import Explanations, explain
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
from .objectives import Active, CenterMass, Location, Objective, Same, Target, TopK
from .repair import RepairResult, repair
from .tuning import Fool, FoolResult, Retrain, Term, Train, TrainResult, fool, train

__version__: str

__all__ = [
    "LRP",
    "Active",
    "AttentionRelevance",
    "AuditReport",
    "Blend",
    "CenterMass",
    "Difference",
    "EigenCAM",
    "Evaluation",
    "Explainer",
    "Explanations",
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
    "OverSeeds",
    "Pairs",
    "Patch",
    "Preprocessing",
    "Recording",
    "RelevanceCAM",
    "RepairResult",
    "Retrain",
    "Rollout",
    "Same",
    "ScoreCAM",
    "Shapes",
    "SimpleGrad",
    "Sinusoid",
    "SmoothGrad",
    "Target",
    "Term",
    "TopK",
    "Train",
    "TrainResult",
    "Trigger",
    "TrompeError",
    "XGradCAM",
    "audit",
    "evaluate",
    "explain",
    "fool",
    "load_data",
    "load_model",
    "over_seeds",
    "repair",
    "train",
]
