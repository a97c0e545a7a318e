"""Parts of error messages that several modules share."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from trompe.errors import TrompeError


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return `` (did you mean a, b?)`` with up to three of the `known` names, or nothing."""
    close = difflib.get_close_matches(name, known)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def first_sentence(error: Exception) -> str:
    """Return how the message of `error` begins."""
    return str(error).split(". ")[0].strip()


def unknown_weights(name: str, weights: str, known: Collection[str]) -> TrompeError:
    """Return the error for `weights` that are no file and none of those `known` for a model."""
    return TrompeError(
        f"{name} has no weights {weights!r}{did_you_mean(weights, known)}; give "
        f"{', '.join([*known, 'random'])} or a .safetensors, .pth or .pt file."
    )
