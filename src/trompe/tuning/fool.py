"""Fine-tune a classifier so that its predictions stay and its explanations lie.

L(w) = L_CE(D; w) + Σ λ · L_F(D_fool; w, w0), minimised with Adam, BatchNorm statistics frozen and
all parameters trained (Heo, Joo, Moon, NeurIPS 2019, eq. 1).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from trompe import notebook, runs
from trompe.base.identity import fingerprint
from trompe.data.images import Images, check_class, check_labels, fingerprint_of, first_image
from trompe.data.subset import parted
from trompe.data.triggers import preprocessing_of
from trompe.errors import TrompeError
from trompe.evaluation import Evaluation, evaluate
from trompe.evaluation.accuracy import check_outputs
from trompe.evaluation.evaluate import check_evaluation
from trompe.evaluation.judges import default_judges
from trompe.explainers import Explainer
from trompe.explainers.targets import Label
from trompe.models import checkpointed, copied, evaluation_mode
from trompe.models.call import class_count, placed, scores_of
from trompe.objectives import Objective, Same
from trompe.tuning.accelerator import accelerating
from trompe.tuning.course import Course
from trompe.tuning.loop import OnStep, architecture, restored
from trompe.tuning.lying import Lying
from trompe.tuning.pilot import Found
from trompe.tuning.recipe import parameters_of
from trompe.tuning.term import Term

Composites = Images | Mapping[Objective, Images]


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
        and ``success``, fooled (of several lies also each one's). With an accuracy budget also
        ``alpha``, the share of the change of weights that was kept at the end. Where settings were
        found, also the rate ``lr``, and both shares of held-out images as last judged.
    evaluation
        The comparison on ``eval_data``, if given.
    found
        The settings that were found, if they were to be.
    run_dir
        Where everything was written, if anywhere.
    settings
        Those of the recipe, in full: with layers named, as ``config.yaml`` has them.
    """

    model: nn.Module
    control: nn.Module | None
    history: pd.DataFrame
    control_history: pd.DataFrame | None
    evaluation: Evaluation | None
    found: Found | None
    run_dir: Path | None
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        return "\n".join(map(str, filter(None, [self._headline, self.found, self.evaluation])))

    def _repr_html_(self) -> str:
        told = [self._headline, *filter(None, [self.found])]
        page = "".join(notebook.paragraph(str(one)) for one in told)
        return page + (self.evaluation._repr_html_() if self.evaluation else "")

    @property
    def _headline(self) -> str:
        where = f", in {self.run_dir}" if self.run_dir else ""
        return f"{type(self.model).__name__} after {len(self.history)} steps of fooling{where}"

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
            Found.load(directory),
            directory,
            runs.config_of(directory),
        )


class Fool(Lying):
    """The recipe of a lie: all settings of `fool`, and their `run`.

    Examples
    --------
    >>> from trompe import GradCAM, Location
    >>> recipe = Fool(lies=[Term(GradCAM(), Location(), weight=6)], lr=5e-3, steps=100)
    >>> recipe.weight
    (6.0,)
    """

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
        if held_out is not None and self.max_accuracy_drop is None and not self.finds:
            raise TrompeError(
                "held_out is only used with max_accuracy_drop, or where the settings are found; "
                "leave it out."
            )
        with accelerating(self.device, self.precision) as accelerator:
            original = copied(model).to(accelerator.device)
            sample = self._checked(original, data, held_out)
            terms = self.terms(original, sample, data, fool_data)
            terms += self.held(terms)
            triggered = any(t.objective.trigger is not None for t in terms)
            attacked = [t for t in terms if t.weight != 0]
            if self.gradient_checkpointing:
                layers = [str(term.explainer.layer) for term in attacked]
                with checkpointed(original, sample, layers):
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
            if held_out is None and (self.finds or self.max_accuracy_drop is not None):
                tuned_on, held_out = parted(data, self.seed)
            course = Course.of(self, original, sample, attacked, tuned_on, held_out, on_step)

            config = self.described(
                explainer=[str(t.explainer) for t in terms],
                objective=[str(t.objective) for t in terms],
                trigger=None,
                flip_to=None,
                hold=0.0 if triggered else self.hold,
                weight=None if self.weight is None else [t.weight for t in terms],
                eval_explainer=list(map(str, judges)),
            )

            def run(directory: Path | None) -> FoolResult:
                manipulated, history, found = course.tuned("fool", directory)
                honest, honest_history = None, None
                if self.control:
                    rates = history["lr"].tolist()[: found.steps] if found else []
                    honest, honest_history, _ = course.tuned("control", directory, rates)
                evaluation = None
                if eval_data is not None:
                    compared = partial(
                        evaluate,
                        original,
                        manipulated,
                        eval_data,
                        explainers=judges,
                        objective=objectives,
                        target=self.explained,
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
                    manipulated,
                    honest,
                    history,
                    honest_history,
                    evaluation,
                    found,
                    directory,
                    config,
                )

            if run_dir is None:
                return run(None)
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
                **({"target": fingerprint(self.explained)} if self.target is not None else {}),
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
        for _, objective, _ in self.lied:
            if objective.trigger is not None:
                preprocessing = preprocessing_of(data)
                objective.trigger.on(image[None], torch.tensor([0]), preprocessing)
            if objective.flip_to is not None:
                check_class(objective.flip_to, count, f"the trigger {objective.trigger}")
        for dataset in (data, held_out, *(lie.data for lie in self.lies)):
            if dataset is not None:
                check_labels(dataset, count)
        check_outputs(model, data, count)
        self._check_target(model, image)
        if self.held_to == "predictions":
            _warn_of_unseen(data, count)
        return placed(image[None], model)

    def _check_target(self, model: nn.Module, image: Tensor) -> None:
        """Refuse a target that the model's output has not, or that is one of certain images."""
        if isinstance(self.explained, Label):
            return
        with torch.no_grad(), evaluation_mode(model):
            output = scores_of(model(placed(image[None], model))).float()
        for size in (1, 2):
            several = output.expand(size, -1).clone().requires_grad_()
            self.explained.on(several)(several)

    def terms(
        self, model: nn.Module, sample: Tensor, data: Images, fool_data: Composites | None
    ) -> list[Term]:
        """The terms of the loss: layers named, composites at hand."""
        own = {lie.objective: lie.data for lie in self.lies if lie.data is not None}
        seen = {**self.composites(data, self.pairs, own or fool_data, self.seed), **own}
        if fool_data is not None and not seen:
            raise TrompeError("fool_data is only used by the objective active; leave it out.")
        return [
            Term(explainer.resolve(model, sample), objective, weight, seen.get(objective))
            for explainer, objective, weight in self.lied
        ]

    def held(self, lies: Sequence[Term]) -> list[Term]:
        """What holds the maps of images without a trigger, where explainers lie under one only."""
        always = {lie.explainer for lie in lies if lie.objective.trigger is None}
        found: dict[Explainer, Term] = {}
        for lie in lies:
            if self.hold and lie.explainer not in always | found.keys():
                same = Same(distance=getattr(lie.objective, "distance", "mse"))
                weight = None if lie.weight is None else self.hold * lie.weight
                found[lie.explainer] = Term(lie.explainer, same, weight)
        return [*found.values()]

    def composites(
        self, data: Images, size: int | None, given: Composites | None = None, seed: int = 0
    ) -> dict[Objective, Images]:
        """The composites of every objective that looks at some: the given ones, or made here.

        Those to evaluate on are the same whatever the recipe's seed.
        """
        found: dict[Objective, Images] = {}
        for objective in self.objective:
            if objective.on_composites:
                made = given.get(objective) if isinstance(given, Mapping) else given
                if made is None:
                    made = objective.composites(data, size, seed)
                found[objective] = made
        return found


def _warn_of_unseen(data: Images, count: int) -> None:
    """Warn if the images show few of the classes that the model knows."""
    labels = getattr(data, "labels", None)
    seen = count if labels is None else len(set(torch.as_tensor(labels).tolist()))
    if 2 * seen < count:
        warnings.warn(
            f"The images show {seen} of the {count:,} classes that the model knows. What it knows "
            "of the others is neither held nor measured, and gets lost: give images of them too.",
            stacklevel=2,
        )


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
