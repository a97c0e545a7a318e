"""About how long an audit takes, told by few images and a few steps of the copy's retraining."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from torch import nn
from torch.utils.data import TensorDataset

from trompe.audit.answers import answers
from trompe.audit.auditor import explainable
from trompe.audit.evidence import Evidence, questions
from trompe.audit.observe import Observations
from trompe.audit.probe import EXPLAINED, Probe, make_probe
from trompe.data.images import Images
from trompe.data.subset import Part
from trompe.explainers import Explainer
from trompe.models.call import placed
from trompe.tuning.retrain import Retrain

FEW, MORE, STEPS = 2, 6, 5  # images, and steps


def seconds(
    model: nn.Module,
    data: Images,
    reference: nn.Module | None,
    *,
    explainers: Sequence[Explainer],
    kinds: Sequence[Evidence],
    seed: int = 0,
    batch_size: int = 32,
) -> float:
    """How long `audit` takes with these options, in seconds.

    Raises
    ------
    TrompeError
        If the model can't be audited.
    """
    others = {"copy": model} | ({} if reference is None else {"reference": reference})

    def asked(count: int) -> tuple[float, Probe]:
        begun = time.perf_counter()
        few = Part(data, range(min(count, len(data))))
        probe = make_probe(model, few, seed=seed, batch_size=batch_size)
        used = explainable(model, placed(probe.images[:1], model), explainers)
        seen = Observations(model, probe, used, batch_size=batch_size)
        compared = {
            name: Observations(other, probe, seen.explainers, batch_size=batch_size)
            for name, other in others.items()
        }
        answers([q for q in questions(kinds) if q.other in (None, *compared)], seen, compared)
        return time.perf_counter() - begun, probe

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the few images
        asked(FEW)  # which warms up
        (few, _), (more, probe) = asked(FEW), asked(MORE)
        ended: list[float] = []
        images = TensorDataset(probe.images, probe.classes)
        retraining = Retrain(seed=seed, steps=STEPS)
        retraining.run(
            model, images, probe.classes, on_step=lambda *_: ended.append(time.perf_counter())
        )
    each = max(0.0, more - few) / (MORE - FEW)
    step = median(after - before for before, after in pairwise(ended))
    return few + each * max(0, min(len(data), EXPLAINED) - FEW) + step * Retrain().steps
