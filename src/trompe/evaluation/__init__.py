"""Compare models in one sweep over data: accuracy, agreement, maps."""

from trompe.evaluation.accuracy import accuracy
from trompe.evaluation.evaluate import CONTROL, MANIPULATED, ORIGINAL, Evaluation, evaluate

__all__ = ["CONTROL", "MANIPULATED", "ORIGINAL", "Evaluation", "accuracy", "evaluate"]
