"""Kinds of evidence, one file each: what is observed, measured and shown."""

from __future__ import annotations

from collections.abc import Iterable

from trompe.audit.evidence.agreement import Agreement
from trompe.audit.evidence.base import Drift, Evidence, Picture, Question, compared, questions
from trompe.audit.evidence.class_swap import ClassSwap, WorstPair
from trompe.audit.evidence.contrast import Contrast
from trompe.audit.evidence.drift import (
    CentreShift,
    Disproportion,
    PairCorrelation,
    RankCorrelation,
    TopIntersection,
)
from trompe.audit.evidence.faithfulness import Faithfulness
from trompe.audit.evidence.heat import Border, Empty
from trompe.audit.evidence.noise import Noise
from trompe.audit.evidence.occlusion import Occlusion
from trompe.audit.evidence.randomisation import Randomisation
from trompe.audit.evidence.sameness import Sameness
from trompe.base.registry import Registry
from trompe.errors import TrompeError

DEFAULT: tuple[Evidence, ...] = (
    Faithfulness(),
    Occlusion(),
    Agreement(),
    Sameness(),
    Border(),
    Empty(),
    Contrast(),
    Noise(),
    Randomisation(),
    ClassSwap(),
    WorstPair(),
    RankCorrelation(),
    TopIntersection(),
    CentreShift(),
    Disproportion(),
    PairCorrelation(),
)
"""The kinds of evidence that the verdict is calibrated for, in the order of the report."""

EVIDENCE: Registry[Evidence] = Registry(
    "evidence",
    Evidence,
    {kind.name.replace(" ", "-"): type(kind) for kind in DEFAULT},
)
"""Kinds of evidence by name."""


def read_kinds(kinds: Iterable[Evidence | str]) -> list[Evidence]:
    """Kinds of evidence, given themselves or by name.

    Raises
    ------
    TrompeError
        If there is none, one is unknown, or two have one name.
    """
    found = [EVIDENCE.read(kind) for kind in kinds]
    names = [kind.name for kind in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise TrompeError(f"Two kinds of evidence are called '{twice[0]}'; give each once.")
    if not found:
        raise TrompeError("An audit needs at least one kind of evidence.")
    return found


__all__ = [
    "DEFAULT",
    "EVIDENCE",
    "Drift",
    "Evidence",
    "Picture",
    "Question",
    "compared",
    "questions",
    "read_kinds",
]
