"""What a run would be, without running it: its settings in full, and about how long it takes."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

from trompe.base.progress import spoken
from trompe.data import ImageDataset
from trompe.tuning.job import FoolJob, TrainJob
from trompe.tuning.pilot import MOST_STEPS

STEPS, IMAGES, PAIRS = 8, 16, 4  # that are timed


@dataclass(frozen=True)
class Estimate:
    """About how long a run takes, told by a few steps and images.

    Attributes
    ----------
    settings
        All of the run's, those that follow from the model and the data among them.
    step
        Seconds that a step takes.
    steps
        How many it takes, those of a control included; where the settings are found, at most.
    image
        Seconds that it takes to judge an image, of ``images``.
    at_most
        Whether the run may end earlier.
    """

    settings: Mapping[str, Any]
    step: float
    steps: int
    image: float = 0.0
    images: int = 0
    at_most: bool = False

    def of(self, job: FoolJob) -> Estimate:
        """That of another job, whose steps and images take as long."""
        return replace(self, steps=_steps(job), at_most=job.finds)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.step * self.steps + self.image * self.images

    def __str__(self) -> str:
        """In a sentence."""
        most = "at most " if self.at_most else ""
        judged = f", {self.images:,} images to judge in {spoken(self.image * self.images)}"
        return (
            f"About {spoken(self.seconds)}: {most}{self.steps:,} steps of {self.step:.2g} s"
            f"{judged if self.images else ''}."
        )


def estimate(job: FoolJob | TrainJob) -> Estimate:
    """Time a few steps of a job, and what follows on a few images; nothing is written.

    Raises
    ------
    TrompeError
        If the job can't be carried out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the few images
        return _of_fool(job) if isinstance(job, FoolJob) else _of_train(job)


def _of_fool(job: FoolJob) -> Estimate:
    composed = any(objective.on_composites for objective in job.objective)
    few = {
        **{"steps": min(job.steps or STEPS, STEPS), "control": False, "seeds": 1, "gallery": 0},
        **{"quiet": True, "check": False, "max_accuracy_drop": None, "held_out": None},
        **{"eval_limit": min(job.eval_limit or IMAGES, IMAGES), "eval_pairs": PAIRS},
        "limit": job.limit if composed else min(job.limit or 256, STEPS * (job.batch_size or 32)),
    }
    times: list[float] = []
    result = job.model_copy(update=few).carry_out(
        None, lambda *_: times.append(time.perf_counter())
    )
    ended = time.perf_counter()
    images, image = 0, 0.0
    if result.evaluation is not None:
        images = len(_read(job)[1] or ()) + (job.eval_pairs or 0) * composed
        image = (ended - times[-1]) / (len(result.evaluation.predictions) + PAIRS * composed)
    given = {name: getattr(job, name) for name in few if name in result.settings}
    settings = {**result.settings, **given}
    return Estimate(settings, _step(times), _steps(job), image, images, job.finds)


def _steps(job: FoolJob) -> int:
    return (job.steps or MOST_STEPS) * (2 if job.control else 1)


def _of_train(job: TrainJob) -> Estimate:
    limit = min(job.limit or math.inf, STEPS * job.batch_size)
    few = {
        **{"quiet": True, "check": False, "eval_data": None, "sides": None},
        **{"epochs": STEPS * job.batch_size / limit, "limit": int(limit)},
    }
    times: list[float] = []
    job.model_copy(update=few).carry_out(None, lambda *_: times.append(time.perf_counter()))
    steps = max(1, math.ceil(len(_read(job)[0]) * job.epochs / job.batch_size))
    return Estimate(job.described(), _step(times), steps, at_most=job.sides is not None)


def _read(job: FoolJob | TrainJob) -> tuple[ImageDataset, ImageDataset | None]:
    """The data and what it is evaluated on, images not looked at."""
    _, data, judged = job.model_copy(update={"check": False}).opened()
    return data, judged


def _step(times: list[float]) -> float:
    return median(after - before for before, after in pairwise(times)) if len(times) > 1 else 0.0
