"""Changes of an image that a lie can wait for."""

from trompe.base.registry import Registry
from trompe.data.triggers.everywhere import Blend, Sinusoid
from trompe.data.triggers.patch import Patch, white_square
from trompe.data.triggers.trigger import Trigger, preprocessing_of

TRIGGERS: Registry[Trigger] = Registry(
    "trigger",
    Trigger,
    {"white-square": white_square, "patch": Patch, "blend": Blend, "sinusoid": Sinusoid},
)
"""Triggers by name."""
NO_TRIGGER = "none"
"""What is written where there is none."""

__all__ = [
    "NO_TRIGGER",
    "TRIGGERS",
    "Blend",
    "Patch",
    "Sinusoid",
    "Trigger",
    "preprocessing_of",
    "white_square",
]
