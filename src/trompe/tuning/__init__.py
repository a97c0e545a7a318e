"""All fine-tuning there is: train, fool, retrain, each a recipe with its settings."""

from trompe.tuning.fool import Fool, FoolResult, fool
from trompe.tuning.retrain import Retrain
from trompe.tuning.term import Term
from trompe.tuning.train import Train, TrainResult, train

__all__ = ["Fool", "FoolResult", "Retrain", "Term", "Train", "TrainResult", "fool", "train"]
