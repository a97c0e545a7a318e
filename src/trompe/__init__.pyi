from .data import ImageDataset, Pairs, Shapes, load_data
from .data.preprocessing import Preprocessing
from .errors import TrompeError
from .evaluation import Evaluation, evaluate
from .explainers import (
    LRP,
    Explainer,
    GradCAM,
    IntegratedGradients,
    Recording,
    SimpleGrad,
    SmoothGrad,
)
from .models import LoadedModel, load_model
from .objectives import Active, CenterMass, Location, Objective, TopK
from .tuning import Fool, FoolResult, Retrain, Term, Train, TrainResult, fool, train

__all__ = [
    "LRP",
    "Active",
    "CenterMass",
    "Evaluation",
    "Explainer",
    "Fool",
    "FoolResult",
    "GradCAM",
    "ImageDataset",
    "IntegratedGradients",
    "LoadedModel",
    "Location",
    "Objective",
    "Pairs",
    "Preprocessing",
    "Recording",
    "Retrain",
    "Shapes",
    "SimpleGrad",
    "SmoothGrad",
    "Term",
    "TopK",
    "Train",
    "TrainResult",
    "TrompeError",
    "evaluate",
    "fool",
    "load_data",
    "load_model",
    "train",
]
