"""Ask the evidence: what is observed of the suspect and of others, and the tables of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trompe.audit.evidence import Question
from trompe.audit.observe import Observations
from trompe.audit.probe import Probe
from trompe.explainers import Explainer
from trompe.tuning.retrain import Retrain


class Answer(NamedTuple):
    """What evidence found for one explainer: a value per image, or pair of classes."""

    question: Question
    explainer: Explainer
    found: Tensor

    @property
    def row(self) -> dict[str, str]:
        """What tables say of it."""
        question, explainer = self.question, self.explainer
        return {
            "section": question.section,
            "kind": question.name,
            "question": question.text,
            "suspicious": question.evidence.suspicious,
            "explainer": str(explainer),
            "family": explainer.family,
            "layer": str(explainer.layer),
        }


def observed(
    model: nn.Module,
    probe: Probe,
    explainers: Sequence[Explainer],
    reference: nn.Module | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> tuple[Observations, dict[str, Observations]]:
    """What is observed of the suspect, and of a retrained ``"copy"`` and the ``"reference"``."""
    seen = Observations(model, probe, explainers, batch_size=batch_size)
    images = TensorDataset(probe.images, probe.classes)
    others = {"copy": Retrain(seed=seed).run(model, images, probe.classes)}
    if reference is not None:
        others["reference"] = reference
    return seen, {
        name: Observations(other, probe, seen.explainers, batch_size=batch_size)
        for name, other in others.items()
    }


def answers(
    questions: Iterable[Question],
    seen: Observations,
    others: Mapping[str, Observations],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """What the evidence says to each question that can be asked; ``progress``: questions done."""
    found = []
    for done, question in enumerate(questions):
        if question.other is None or question.other in others:
            values = question.ask(seen, question.other and others[question.other])
            found += [Answer(question, explainer, of) for explainer, of in values.items()]
        progress(done + 1)
    return found


def scores(given: Iterable[Answer]) -> pd.DataFrame:
    """One row per question and explainer, with its score."""
    return pd.DataFrame([a.row | {"score": a.question.evidence.summary(a.found)} for a in given])
