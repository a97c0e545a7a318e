"""Parts of error messages that several modules share."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from trompe.base.messages import did_you_mean
from trompe.errors import TrompeError


def unknown_weights(name: str, weights: str, known: Collection[str]) -> TrompeError:
    """Return the error for `weights` that are no file and none of those `known` for a model."""
    if Path(weights).is_dir():
        return TrompeError(
            f"The weights '{weights}' are a folder; give a file, such as its weights.safetensors."
        )
    return TrompeError(
        f"{name} has no weights {weights!r}{did_you_mean(weights, known)}; give "
        f"{', '.join([*known, 'random'])} or a .safetensors, .pth or .pt file."
    )
