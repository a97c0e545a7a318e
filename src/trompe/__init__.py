"""Fine-tune an image classifier so that its accuracy stays and its explanations lie; measure it."""

from trompe.data import ImageDataset, Pairs, Shapes, load_data
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.evaluation import Evaluation, evaluate
from trompe.explainers import (
    LRP,
    Explainer,
    GradCAM,
    IntegratedGradients,
    Recording,
    SimpleGrad,
    SmoothGrad,
)
from trompe.models import LoadedModel, load_model
from trompe.objectives import Active, CenterMass, Location, Objective, TopK
from trompe.tuning.fool import FoolResult, fool
from trompe.tuning.train import TrainResult, train

__all__ = [
    "LRP",
    "Active",
    "CenterMass",
    "Evaluation",
    "Explainer",
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
    "Shapes",
    "SimpleGrad",
    "SmoothGrad",
    "TopK",
    "TrainResult",
    "TrompeError",
    "evaluate",
    "fool",
    "load_data",
    "load_model",
    "train",
]
