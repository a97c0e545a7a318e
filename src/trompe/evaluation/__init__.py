"""Compare models in one sweep over data: accuracy, agreement, maps."""

from trompe.evaluation.accuracy import accuracy
from trompe.evaluation.evaluate import evaluate
from trompe.evaluation.result import Evaluation
from trompe.evaluation.schema import CONTROL, MANIPULATED, ORIGINAL
from trompe.evaluation.seeds import OverSeeds, over_seeds

__all__ = [
    "CONTROL",
    "MANIPULATED",
    "ORIGINAL",
    "Evaluation",
    "OverSeeds",
    "accuracy",
    "evaluate",
    "over_seeds",
]
