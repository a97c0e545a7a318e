"""Fine-tune a classifier so that its predictions stay and its explanations lie.

L(w) = L_CE(D; w) + Σ λ · L_F(D_fool; w, w0), minimised with Adam, BatchNorm statistics frozen and
all parameters trained (Heo, Joo, Moon, NeurIPS 2019, eq. 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from pydantic import Field, PlainValidator, model_validator
from torch import Tensor, nn

from trompe import runs
from trompe.base.identity import fingerprint
from trompe.base.settings import Whole
from trompe.data.images import Images, check_class, check_labels, fingerprint_of, first_image
from trompe.data.subset import parted
from trompe.errors import TrompeError
from trompe.evaluation import Evaluation, evaluate
from trompe.evaluation.accuracy import check_outputs
from trompe.evaluation.evaluate import check_evaluation
from trompe.evaluation.judges import default_judges
from trompe.explainers import GradCAM
from trompe.models import checkpointed, copied
from trompe.models.call import class_count, placed
from trompe.objectives import Location, Objective
from trompe.tuning.accelerator import accelerating
from trompe.tuning.budget import walk_back
from trompe.tuning.loop import Batches, OnStep, architecture, once, optimise, restored
from trompe.tuning.loss import Keep, StepLoss
from trompe.tuning.recipe import (
    Explainers,
    Numbers,
    Objectives,
    Schedule,
    Tuning,
    parameters_of,
    scheduler,
)
from trompe.tuning.term import Term

Composites = Images | Mapping[Objective, Images]


def _lies(given: Any) -> tuple[Term, ...]:
    lies = (given,) if isinstance(given, Term) else tuple(given)
    if not all(isinstance(lie, Term) for lie in lies):
        raise TrompeError("lies are terms: Term(GradCAM(), Location(), weight=6).")
    return lies


Lies = Annotated[Any, PlainValidator(_lies)]


@dataclass(frozen=True)
class FoolResult:
    """What `fool` made.

    Attributes
    ----------
    model
        The manipulated model.
    control
        The model after the same fine-tuning without the explanation terms, if asked for.
    history, control_history
        One row per step: loss, its parts, and two shares of the batch: ``top1``, predicted right,
        and ``success``, fooled. With an accuracy budget also ``alpha``, the share of the change of
        weights that was kept at the end.
    evaluation
        The comparison on ``eval_data``, if given.
    run_dir
        Where everything was written, if anywhere.
    """

    model: nn.Module
    control: nn.Module | None
    history: pd.DataFrame
    control_history: pd.DataFrame | None
    evaluation: Evaluation | None
    run_dir: Path | None

    @classmethod
    def load(cls, directory: str | Path, model: nn.Module | None = None) -> FoolResult:
        """Read the run that a directory holds.

        Parameters
        ----------
        directory
            The run directory, whose fine-tuning is finished.
        model
            A model of the same architecture; None for the one that the directory names, unless
            that asks for code to be run.

        Raises
        ------
        TrompeError
            If the run is not finished, or the model is not known.
        """
        directory = Path(directory)
        done = runs.finished(directory)
        if "fool" not in done:
            raise TrompeError(f"'{directory}' holds no finished lie; run its command again first.")
        manipulated = architecture(directory, model)
        control, control_history = None, None
        if "control" in done:
            control = architecture(directory, model)
            control_history = restored(control, directory, "-control")
        return cls(
            manipulated,
            control,
            restored(manipulated, directory),
            control_history,
            Evaluation.load(directory / "evaluation") if "evaluation" in done else None,
            directory,
        )


class Fool(Tuning):
    """The recipe of a lie: all settings of `fool`, and their `run`.

    Examples
    --------
    >>> from trompe import GradCAM, Location
    >>> recipe = Fool(lies=[Term(GradCAM(), Location(), weight=6)], lr=5e-3, steps=100)
    >>> recipe.weight
    (6.0,)
    """

    panel: ClassVar[str] = "Lie"
    explainer: Explainers = Field(
        (GradCAM(),),
        description="explainer, e.g. grad-cam, simple-grad-t, lrp:layer=layer4, path/file.py:Name; "
        "may be given several times; attacked",
    )
    objective: Objectives = Field(
        (Location(),),
        description="location, top-k, center-mass or active:c1=3,c2=8, path/file.py:Name; may be "
        "given several times",
    )
    weight: Numbers = Field((1.0,), description="weight λ of each explainer and objective")
    opposition: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of what keeps logits from turning; 0 as in the paper",
    )
    faintness: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of what keeps maps from fading; 0 as in the paper",
    )
    eval_explainer: Explainers | None = Field(
        None, description="explainer as above; evaluated as well"
    )
    lr: float = Field(1e-5, gt=0, allow_inf_nan=False, description="Adam's learning rate")
    schedule: Schedule = Field("constant", description="of the rate")
    steps: Whole = Field(ge=1, description="optimiser steps")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="scale gradients down to this norm; null in YAML: leave them"
    )
    gradient_checkpointing: bool = Field(
        False, description="less memory, more time: run what is below the layers again in backward"
    )
    fool_batch_size: Whole | None = Field(None, ge=1, description="composites per step (active)")
    pairs: Whole | None = Field(None, ge=1, description="composites to fine-tune on (active)")
    eval_pairs: Whole | None = Field(
        200, ge=1, description="composites of all of --eval-data to evaluate on (active)"
    )
    keep: Keep = Field(
        "labels", description="what the classification holds to: the labels, or the original's word"
    )
    control: bool = Field(False, description="also fine-tune without the explanation term")
    max_accuracy_drop: float | None = Field(
        None, gt=0, lt=100, allow_inf_nan=False, description="points of top-1 that may be lost"
    )
    gallery: Whole = Field(
        12,
        ge=0,
        le=200,
        description="images of the report's gallery, evenly drawn; best and worst lies are added",
    )
    lies: Lies = Field((), exclude=True, repr=False, description="terms, instead of these three")

    @model_validator(mode="before")
    @classmethod
    def _from_lies(cls, given: Any) -> Any:
        """Terms say explainer, objective and weight at once."""
        lies = given.get("lies") if isinstance(given, dict) else None
        if not lies:
            return given
        if clash := {"explainer", "objective", "weight"} & given.keys():
            raise TrompeError(f"lies say {', '.join(sorted(clash))} already; give one of both.")
        lies = _lies(lies)
        return {
            **given,
            "explainer": tuple(term.explainer for term in lies),
            "objective": tuple(term.objective for term in lies),
            "weight": tuple(term.weight for term in lies),
        }

    @model_validator(mode="after")
    def _fit_together(self) -> Fool:
        several = {
            "explainers": self.explainer,
            "objectives": self.objective,
            "weights": self.weight,
        }
        counts = {what: len(given) for what, given in several.items()}
        if set(counts.values()) - {1, max(counts.values())} or 0 in counts.values():
            said = [f"{count} {what}" for what, count in counts.items()]
            raise TrompeError(
                f"There are {said[0]}, {said[1]} and {said[2]}; give one of each, or the same "
                "number of those that vary."
            )
        for explainer, weight in self._aligned("explainer", "weight"):
            if weight and not explainer.differentiable:
                raise TrompeError(
                    f"{explainer} can't be attacked: its maps have no gradient in the model's "
                    "parameters. Attack another explainer, and evaluate with this one "
                    "(eval_explainer)."
                )
        return self

    def _aligned(self, *names: str) -> list[tuple[Any, ...]]:
        """The values of settings side by side, those given once repeated."""
        given = [getattr(self, name) for name in names]
        count = max(len(getattr(self, n)) for n in ("explainer", "objective", "weight"))
        return [tuple(values[i % len(values)] for values in given) for i in range(count)]

    def run(
        self,
        model: nn.Module,
        data: Images,
        *,
        fool_data: Composites | None = None,
        held_out: Images | None = None,
        eval_data: Images | None = None,
        eval_fool_data: Composites | None = None,
        run_dir: str | Path | None = None,
        notes: Mapping[str, Any] | None = None,
        on_step: OnStep | None = None,
    ) -> FoolResult:
        """Carry the recipe out; see `fool`."""
        if held_out is not None and self.max_accuracy_drop is None:
            raise TrompeError(
                "held_out is only used with max_accuracy_drop; give both, or neither."
            )
        with accelerating(self.device, self.precision) as accelerator:
            original = copied(model).to(accelerator.device)
            sample = self._checked(original, data, held_out)
            terms = self._terms(original, sample, data, fool_data)
            attacked = [t for t in terms if t.weight]
            if self.gradient_checkpointing:
                with checkpointed(original, sample, _layers(attacked)):
                    pass  # it can be done
            judges = default_judges(
                original, sample, [t.explainer for t in terms], self.eval_explainer
            )
            objectives = list(dict.fromkeys(t.objective for t in terms))
            judged_on: dict[Objective, Images] = {}
            if eval_data is not None:
                judged_on = self.composites(eval_data, self.eval_pairs, eval_fool_data)
                check_evaluation(original, eval_data, judged_on, objectives)
            tuned_on = data
            if self.max_accuracy_drop is not None and held_out is None:
                tuned_on, held_out = parted(data, self.seed)
            course = _Course(original, self._sources(tuned_on, terms), held_out, sample, on_step)

            def run(directory: Path | None) -> FoolResult:
                manipulated, history = self._tuned("fool", attacked, course, directory)
                honest, honest_history = None, None
                if self.control:
                    honest, honest_history = self._tuned("control", [], course, directory)
                evaluation = None
                if eval_data is not None:
                    compared = partial(
                        evaluate,
                        original,
                        manipulated,
                        eval_data,
                        explainers=judges,
                        objective=objectives,
                        control=honest,
                        fool_data=judged_on,
                        attacked=[(t.explainer, t.objective) for t in attacked],
                        gallery=self.gallery,
                        workers=self.workers,
                        quiet=self.quiet,
                    )
                    evaluation = (
                        compared()
                        if directory is None
                        else runs.part(directory, "evaluation", compared, Evaluation.load)
                    )
                return FoolResult(
                    manipulated, honest, history, honest_history, evaluation, directory
                )

            if run_dir is None:
                return run(None)
            config = self.described(
                explainer=[str(t.explainer) for t in terms],
                objective=[str(t.objective) for t in terms],
                weight=[t.weight for t in terms],
                eval_explainer=list(map(str, judges)),
            )
            seen = {
                "data": data,
                "held-out data": held_out if tuned_on is data else None,
                "evaluation data": eval_data,
                **{f"composites of {t.objective}": t.data for t in terms},
                **{f"evaluation composites of {o}": of for o, of in judged_on.items()},
            }
            start = {
                "weights": fingerprint(original),
                "explainers or objectives": fingerprint(
                    [(t.explainer, t.objective) for t in terms], judges
                ),
                **{what: fingerprint_of(of) for what, of in seen.items() if of is not None},
            }
            with runs.opened(Path(run_dir), {**(notes or {}), **config}, start) as directory:
                runs.require_space(directory, original, 8)
                return run(directory)

    def _checked(self, model: nn.Module, data: Images, held_out: Images | None) -> Tensor:
        """Refuse what can't work; returns one image ``[1, 3, H, W]`` on the model's device."""
        image = first_image(data, "fine-tune")
        count = class_count(model, image)
        for objective in self.objective:
            if objective.on_composites:
                for target in objective.classes(torch.tensor([0])):
                    check_class(int(target), count, str(objective))
        for dataset in (data, held_out, *(lie.data for lie in self.lies)):
            if dataset is not None:
                check_labels(dataset, count)
        check_outputs(model, data, count)
        return placed(image[None], model)

    def _terms(
        self, model: nn.Module, sample: Tensor, data: Images, fool_data: Composites | None
    ) -> list[Term]:
        """The terms of the loss: layers named, composites at hand."""
        own = {lie.objective: lie.data for lie in self.lies if lie.data is not None}
        seen = {**self.composites(data, self.pairs, own or fool_data), **own}
        if fool_data is not None and not seen:
            raise TrompeError("fool_data is only used by the objective active; leave it out.")
        return [
            Term(explainer.resolve(model, sample), objective, weight, seen.get(objective))
            for explainer, objective, weight in self._aligned("explainer", "objective", "weight")
        ]

    def composites(
        self, data: Images, size: int | None, given: Composites | None = None
    ) -> dict[Objective, Images]:
        """The composites of every objective that looks at some: the given ones, or made here."""
        found: dict[Objective, Images] = {}
        for objective in self.objective:
            if objective.on_composites:
                made = given.get(objective) if isinstance(given, Mapping) else given
                if made is None:
                    made = objective.composites(data, size, self.seed)
                found[objective] = made
        return found

    def _sources(self, data: Images, terms: Sequence[Term]) -> dict[int | None, Batches]:
        """Batches by the data that terms look at; None stands for those of the classification."""
        sizes = self.batch_size, self.fool_batch_size or self.batch_size
        sources: dict[int | None, Batches] = {
            None: Batches(data, sizes[0], self.seed, self.workers)
        }
        for term in terms:
            if term.data is not None and id(term.data) not in sources:
                sources[id(term.data)] = Batches(term.data, sizes[1], self.seed, self.workers)
        return sources

    def _tuned(
        self, name: str, terms: list[Term], course: _Course, directory: Path | None
    ) -> tuple[nn.Module, pd.DataFrame]:
        """The model after one fine-tuning, and its history."""
        model = copied(course.original)

        def fit(folder: Path | None) -> pd.DataFrame:
            with accelerating(self.device, self.precision) as accelerator, ExitStack() as stack:
                model.eval().requires_grad_(True)
                optimizer = torch.optim.Adam(model.parameters(), lr=self.lr, fused=True)
                rate = scheduler(optimizer, self.schedule, self.lr, self.steps, warm_up=0.1)
                prepared = accelerator.prepare_model(model, evaluation_mode=True)
                optimizer, rate = accelerator.prepare(optimizer, rate)
                loss = StepLoss(
                    course.original,
                    prepared,
                    terms,
                    course.sources,
                    opposition=self.opposition,
                    faintness=self.faintness,
                    keep=self.keep,
                    folder=folder,
                )
                if self.gradient_checkpointing:
                    stack.enter_context(checkpointed(model, course.sample, _layers(terms)))
                rows = optimise(
                    accelerator,
                    prepared,
                    optimizer,
                    loss.sources,
                    loss,
                    steps=self.steps,
                    title=name,
                    directory=folder,
                    checkpoint_every=self.checkpoint_every,
                    extra=loss.kept,
                    on_step=course.on_step,
                    scheduler=rate,
                    max_grad_norm=self.max_grad_norm,
                    quiet=self.quiet,
                )
                accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
                history = pd.DataFrame(rows)
                if terms and course.held_out is not None and self.max_accuracy_drop is not None:
                    history["alpha"] = walk_back(
                        course.original, model, course.held_out, self.max_accuracy_drop
                    )
                return history

        history = once(model, directory, name, fit, suffix="" if name == "fool" else f"-{name}")
        for parameter, before in zip(model.parameters(), course.original.parameters(), strict=True):
            parameter.requires_grad_(before.requires_grad)
            parameter.grad = None
        return model, history


@dataclass(frozen=True)
class _Course:
    """What the fine-tunings of one run share."""

    original: nn.Module
    sources: Mapping[int | None, Batches]
    held_out: Images | None
    sample: Tensor
    on_step: OnStep | None


def _layers(terms: Iterable[Term]) -> list[str]:
    return [str(term.explainer.layer) for term in terms]


@parameters_of(Fool)
def fool(
    model: nn.Module,
    data: Images,
    *,
    fool_data: Composites | None = None,
    held_out: Images | None = None,
    eval_data: Images | None = None,
    eval_fool_data: Composites | None = None,
    run_dir: str | Path | None = None,
    notes: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> FoolResult:
    """Manipulate a copy of ``model`` so that explanations lie and predictions stay.

    Each step runs one forward pass on a batch of ``data`` for the classification loss and the
    passive foolings together, and one on a batch of ``fool_data`` for active fooling. The
    original's maps are computed once per image and kept, in memory or in the run directory. If
    ``data`` is augmented (its attribute ``augmented`` is true) every epoch shows another image, a
    kept map would not belong to it, and the original explains the same augmented batch instead.
    Beyond the paper, `maps.opposition` and `maps.faintness` of the attacked maps are added to the
    loss, without λ. Where the first is above 0 the logit has been driven below 0, which costs no
    accuracy if all are, and the heatmap, what is left above 0, says little. Where the second is,
    the map fades below a fifth of the original's size; one that is 0 everywhere says nothing, and
    has no gradient that would bring it back.

    Under ``torchrun`` or ``accelerate launch`` every process takes its share of each batch and of
    the evaluation; the main one writes. The result is that of one process with the same batches.

    Parameters
    ----------
    model
        The classifier w0; it is not changed.
    data
        D: items ``(image [3, H, W], label)``; without augmentation an index must always give the
        same image.
    fool_data
        D_fool for `Active`: images that hold both classes, one data set or one by objective; made
        from ``data`` if that is a data set of `load_data`.
    eval_data, eval_fool_data
        What `evaluate` compares the models on at the end.
    held_out
        Images that ``max_accuracy_drop`` is measured on: at the end as much of the lie is taken
        back as the budget asks, see `tuning.budget`. Without them a part of ``data`` is not
        fine-tuned on; a model that has it by heart forgets some of it in any fine-tuning, and the
        budget is stricter than it says.
    run_dir
        Directory for checkpoints and results. A run that was interrupted goes on from its last
        checkpoint and ends with the same weights; a finished one is read back.
    notes
        More entries for the run directory's config, e.g. where the model came from.
    on_step
        Called after every step with the fine-tuning's name (``"fool"`` or ``"control"``) and its
        row of the history.
    settings
        Those of `Fool`, listed below. ``explainer``, ``objective`` and ``weight`` are one or
        several, objects or text; what is given once is used with all of the others.

    Returns
    -------
    FoolResult

    Raises
    ------
    TrompeError
        If something given can't be used (before anything starts), the loss stops being finite, or
        the run directory can't be used.
    """
    return Fool(**settings).run(
        model,
        data,
        fool_data=fool_data,
        held_out=held_out,
        eval_data=eval_data,
        eval_fool_data=eval_fool_data,
        run_dir=run_dir,
        notes=notes,
        on_step=on_step,
    )
