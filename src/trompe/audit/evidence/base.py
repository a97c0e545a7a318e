"""What a kind of evidence is, and the questions that several of them make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from trompe.audit.observe import Maps, Observations
from trompe.audit.removal import on_grid
from trompe.errors import TrompeError
from trompe.explainers import Explainer
from trompe.maps import spearman


class Picture(NamedTuple):
    """A heatmap ``[h, w]`` in [0, 1] on an image ``[3, H, W]``, normalised; in words."""

    caption: str
    image: Tensor
    heatmap: Tensor


class Evidence(ABC):
    """A kind of evidence: what it observes, how it measures, how it is shown.

    Attributes
    ----------
    name, question
        For people; the answer "yes" is what an honest model gives.
    suspicious
        Which end of the scale speaks against the model.
    over
        What the values belong to: the probe's images, or its pairs of classes.
    score
        The mean of the values, or their minimum.
    scale
        What values mean, for readers of the pictures.
    changes
        Whether it also asks how much the values differ from those of another model.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    suspicious: ClassVar[Literal["low", "high"]]
    over: ClassVar[Literal["image", "pair"]] = "image"
    score: ClassVar[Literal["mean", "min"]] = "mean"
    scale: ClassVar[str] = ""
    changes: ClassVar[bool] = True

    @abstractmethod
    def measure(self, seen: Observations) -> Maps:
        """One value per image, or pair of classes, for each explainer: ``[N]``."""

    def change(self, seen: Observations, before: Observations) -> Maps:
        """The values of the suspect less those of another model."""
        now, then = self.measure(seen), self.measure(before)
        return {e: now[e] - then[e] for e in now if e in then}

    def pictures(self, seen: Observations, explainer: Explainer, place: int) -> Sequence[Picture]:
        """What shows the value at ``place``; by default nothing beside the explainers' maps."""
        return ()

    def summary(self, values: Tensor) -> float:
        """The score of one explainer; NaN without a value."""
        if not len(values):
            return float("nan")
        return float(values.mean() if self.score == "mean" else values.min())


class Drift(Evidence):
    """Evidence that there is only between two models; ``{other}`` in its question is the second."""

    def measure(self, seen: Observations) -> Maps:
        """Nothing of one model alone."""
        return {}


class Question(NamedTuple):
    """What one kind of evidence asks in one section of the audit.

    Attributes
    ----------
    section
        ``"alone"`` or ``"reference"``.
    name, text
        Of the evidence, and what is asked.
    evidence
        Who asks.
    other
        Which model the suspect is compared with, if any: the ``"copy"`` or the ``"reference"``.
    """

    section: str
    name: str
    text: str
    evidence: Evidence
    other: Literal["copy", "reference"] | None = None

    def ask(self, seen: Observations, other: Observations | None) -> Maps:
        """The values for each explainer.

        Raises
        ------
        TrompeError
            If the evidence gives anything else.
        """
        evidence = self.evidence
        found = evidence.measure(seen) if other is None else evidence.change(seen, other)
        for explainer, values in found.items():
            if not isinstance(values, Tensor) or values.dim() != 1:
                got = tuple(values.shape) if isinstance(values, Tensor) else repr(values)
                raise TrompeError(
                    f"The evidence '{self.name}' must give one value per {evidence.over}, a tensor "
                    f"[N]; for {explainer} it gave {got}."
                )
        return found


OTHERS: tuple[tuple[str, Literal["copy", "reference"], str], ...] = (
    ("alone", "copy", "retrained copy"),
    ("reference", "reference", "reference"),
)
"""In which section the suspect is compared with which model, and what it is called."""


def questions(kinds: Sequence[Evidence]) -> list[Question]:
    """All that is asked, in the order of the report."""
    single = [kind for kind in kinds if not isinstance(kind, Drift)]
    asked = [Question("alone", kind.name, kind.question, kind) for kind in single]
    for section, other, words in OTHERS:
        for kind in kinds:
            if isinstance(kind, Drift):
                text = kind.question.format(other=words)
                asked.append(Question(section, kind.name, text, kind, other))
        for kind in single:
            if kind.changes:
                text = f"As for the {words}: {kind.question[0].lower()}{kind.question[1:]}"
                asked.append(Question(section, f"{kind.name}, change", text, kind, other))
    return asked


def compared(first: Maps, second: Maps) -> Maps:
    """Rank correlation ``[n]`` of maps with others of the same images, or of the first few."""
    return {
        explainer: spearman(on_grid(first[explainer][: len(maps)]), on_grid(maps)).float()
        for explainer, maps in second.items()
        if explainer in first
    }
