"""Models: load one by name or path, find its target layer, keep its mode, save its weights."""

from trompe.models.checkpointing import checkpointed
from trompe.models.copying import copied
from trompe.models.from_factory import MODELS
from trompe.models.hooks import evaluation_mode
from trompe.models.layers import find_heads, find_layer, get_layer
from trompe.models.load import LoadedModel, load_model
from trompe.models.normalised import fold_batch_norm
from trompe.models.weights import save_weights

__all__ = [
    "MODELS",
    "LoadedModel",
    "checkpointed",
    "copied",
    "evaluation_mode",
    "find_heads",
    "find_layer",
    "fold_batch_norm",
    "get_layer",
    "load_model",
    "save_weights",
]
