"""The settings of the commands that do not fine-tune; those that do are recipes' jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from trompe.base.settings import Whole
from trompe.objectives import Objective, parse_objective
from trompe.objectives.objective import aligned, under
from trompe.tuning.job import ARGUMENT, DATA, MODEL, DataJob, Job
from trompe.tuning.lying import FLIP_TO, TARGET, TRIGGER
from trompe.tuning.recipe import Flips, Triggers

EXPLAINER = "explainer, e.g. grad-cam, simple-grad-t, lrp:layer=layer4; may be given several times"
GALLERY = "images of the report's gallery, evenly drawn; best and worst lies are added"
OBJECTIVE = "location, top-k, center-mass, target:map=square, same or active:c1=3,c2=8; may be "
OBJECTIVE += "given several times"


class EvaluateJob(DataJob):
    """Settings of ``trompe evaluate``."""

    manipulated: str = Field(description="weights of the manipulated model, or its run directory")
    control: str | None = Field(
        None, description="weights of the control model, or its run directory"
    )
    explainer: list[str] = Field(
        ["grad-cam", "lrp", "simple-grad", "integrated-gradients:steps=8"], description=EXPLAINER
    )
    objective: list[str] = Field(["location"], description=OBJECTIVE)
    trigger: Triggers | None = Field(None, description=TRIGGER)
    flip_to: Flips | None = Field(None, description=FLIP_TO)
    target: str = Field(
        "label",
        description=f"{TARGET}, or what the objective asks for: the label, or c1 and c2",
        coerce_numbers_to_str=True,
    )
    batch_size: Whole = Field(32, ge=1, description="images per batch")
    pairs: Whole | None = Field(200, ge=1, description="composites to evaluate on (active)")
    gallery: Whole = Field(12, ge=0, le=200, description=GALLERY)

    @property
    def judged(self) -> list[Objective]:
        """The objectives, each with its trigger; what is given once goes with all of the others."""
        together = aligned(
            objectives=[*map(parse_objective, self.objective)],
            triggers=self.trigger or None,
            classes_to_flip_to=self.flip_to or None,
        )
        return [under(*given) for given in together]


class ExplainJob(Job):
    """Settings of ``trompe explain``."""

    images: list[Path] = Field(description="image files or folders of images")
    corrupt: Literal["refuse", "skip"] = Field(
        "refuse", description="what of images that can't be read"
    )
    explainer: list[str] = Field(["grad-cam"], description=EXPLAINER)
    target: str = Field("predicted", description=TARGET, coerce_numbers_to_str=True)
    classes: Whole | None = Field(None, description="class to explain, short for --target CLASS")
    batch_size: Whole = Field(16, ge=1, description="images per batch")
    check: bool = Field(
        False,
        description="show how much relevance LRP keeps, layer by layer",
        json_schema_extra={"panel": "Explanations"},
    )


class SuspectJob(DataJob):
    """Settings of the commands that look at a model from elsewhere."""

    suspect: str = Field(
        description="weights file, run directory, or a model as for --model",
        json_schema_extra=ARGUMENT,
    )
    model: str | None = Field(None, description=f"{MODEL}; not needed for a run directory")  # type: ignore[assignment]
    reference: str | None = Field(None, description="the model before: weights or run directory")
    data: str = Field(description=f"{DATA}; or a folder of images without labels")
    limit: Whole | None = Field(500, ge=2, description="audit on this many images at most")
    explainer: list[str] | None = Field(
        None, description=f"{EXPLAINER} (default: grad-cam lrp-t simple-grad-t simple-grad)"
    )
    calibration: Path | None = Field(None, description="file of trompe calibrate")
    batch_size: Whole = Field(32, ge=1, description="images per batch")


class AuditJob(SuspectJob):
    """Settings of ``trompe audit``."""

    evidence: list[str] | None = Field(
        None, description="kind of evidence besides those that are known, e.g. mine.py:Mine"
    )


class RepairJob(SuspectJob):
    """Settings of ``trompe repair``."""

    limit: Whole | None = Field(10000, ge=2, description="use this many images at most")
    labels: bool = Field(True, description="train towards the images' labels, if they have any")
    steps: list[Annotated[Whole, Field(ge=1)]] = Field(
        [100, 400, 1600, 6400],
        description="lengths of the fine-tunings that are tried, in batches of 16",
    )
    rate: float = Field(0.03, gt=0, description="largest step, as a share of a tensor's own size")
    max_drop: float = Field(
        0.5, ge=0, lt=100, description="percentage points of accuracy that may be lost"
    )
