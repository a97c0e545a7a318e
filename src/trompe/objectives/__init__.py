"""What a fooled heatmap should look like: losses over maps, and the test losses that judge them."""

from collections.abc import Iterable

from trompe.base.registry import Registry
from trompe.objectives.active import Active
from trompe.objectives.center_mass import CenterMass
from trompe.objectives.location import Location
from trompe.objectives.objective import Maps, Objective
from trompe.objectives.shown import Same, Target
from trompe.objectives.top_k import TopK

OWN = (Location, TopK, CenterMass, Active, Target, Same)
OBJECTIVES: Registry[Objective] = Registry(
    "objective",
    Objective,
    {objective.name: objective for objective in OWN},
)
"""Objectives by name."""


def parse_objective(spec: str) -> Objective:
    """Build an objective from text: ``location``, ``top-k:fraction=0.2``, ``active:c1=3,c2=8``.

    ``low=`` and ``high=`` change the interval that counts as fooled; ``trigger='...'`` and
    ``flip_to=`` say what is in the images, and what they are then predicted as. One of your own is
    named as ``path/file.py:Name`` or ``package.module:Name``.

    Raises
    ------
    TrompeError
        If the name or an option is unknown.
    """
    return OBJECTIVES.build(spec)


def read(given: str | Objective | Iterable[str | Objective]) -> tuple[Objective, ...]:
    """One or several objectives, each an object or its text.

    Raises
    ------
    TrompeError
        If one is neither, or there is none.
    """
    return OBJECTIVES.read_all(given)


__all__ = [
    "OBJECTIVES",
    "Active",
    "CenterMass",
    "Location",
    "Maps",
    "Objective",
    "Same",
    "Target",
    "TopK",
    "parse_objective",
    "read",
]
