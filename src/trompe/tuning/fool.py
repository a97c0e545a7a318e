"""Fine-tune a classifier so that its predictions stay and its explanations lie.

L(w) = L_CE(D; w) + Σ λ · L_F(D_fool; w, w0), minimised with Adam, BatchNorm statistics frozen and
all parameters trained (Heo, Joo, Moon, NeurIPS 2019, eq. 1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from trompe import runs
from trompe.base import processes
from trompe.data.images import Images, check_class, check_labels
from trompe.data.subset import parted
from trompe.errors import TrompeError
from trompe.evaluation import Evaluation, evaluate
from trompe.evaluation.evaluate import check_evaluation
from trompe.evaluation.judges import default_judges
from trompe.explainers import Explainer
from trompe.models import checkpointed
from trompe.models.call import class_count, placed
from trompe.objectives import Objective
from trompe.tuning.budget import walk_back
from trompe.tuning.loop import Batches, OnStep, accelerator_for, once, optimise
from trompe.tuning.loss import Keep, StepLoss, Term

SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, float, int], LRScheduler]] = {
    "constant": lambda optimizer, lr, steps: ConstantLR(optimizer, 1.0),
    "one-cycle": lambda optimizer, lr, steps: OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.1, cycle_momentum=False
    ),
}


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


def fool(
    model: nn.Module,
    data: Images,
    *,
    explainer: Explainer | Sequence[Explainer],
    objective: Objective | Sequence[Objective],
    weight: float | Sequence[float] = 1.0,
    lr: float,
    schedule: str = "constant",
    steps: int,
    batch_size: int = 8,
    seed: int = 0,
    fool_data: Images | None = None,
    fool_batch_size: int | None = None,
    eval_data: Images | None = None,
    eval_fool_data: Images | None = None,
    eval_explainer: Explainer | Sequence[Explainer] | None = None,
    keep: Keep = "labels",
    control: bool = False,
    max_accuracy_drop: float | None = None,
    held_out: Images | None = None,
    max_grad_norm: float | None = 1.0,
    run_dir: str | Path | None = None,
    checkpoint_every: int = 200,
    precision: str = "no",
    gradient_checkpointing: bool = False,
    device: str | None = None,
    gallery: int = 12,
    workers: int = 0,
    notes: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
    quiet: bool = False,
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
    explainer, objective, weight
        One or several of each; what is given once is used with all of the others. ``weight`` is λ;
        what has weight 0 is only evaluated.
    lr, schedule
        Adam's learning rate, ``"constant"`` as in the paper or ``"one-cycle"``: a tenth of the
        steps up to it, then a cosine down to almost 0, which costs less accuracy in short runs.
    steps, batch_size, seed
        Optimiser steps, images per step, seed of everything random.
    fool_data, fool_batch_size
        D_fool for `Active`: images that hold both classes, and how many per step (default
        ``batch_size``).
    eval_data, eval_fool_data, eval_explainer
        What `evaluate` compares the models on at the end, and with which explainers (default: the
        attacked ones, and LRP, SimpleGrad and Integrated Gradients at the input).
    keep
        What the classification loss holds the model to: ``"labels"``, as the paper, or
        ``"predictions"``, the original's probabilities (distillation, Hinton et al., 2015). They
        say more than labels that the original has by heart, and cost it less accuracy.
    max_accuracy_drop, held_out
        Percentage points of top-1 that the lie may cost on the images ``held_out``: at the end
        as much of it is taken back as that asks, see `tuning.budget`. Without ``held_out`` a part
        of ``data`` is not fine-tuned on; a model that has it by heart forgets some of it in any
        fine-tuning, and the budget is stricter than it says.
    max_grad_norm
        Gradients of a larger norm are scaled down to it; None leaves them, as the paper. Those of
        a map that grows faint are large enough to undo the classifier.
    control
        Also fine-tune without the explanation terms, same seed and batches: what honest
        fine-tuning changes by itself.
    run_dir
        Directory for checkpoints and results. A run that was interrupted goes on from its last
        checkpoint and ends with the same weights; a finished one is read back.
    checkpoint_every
        Steps between checkpoints.
    precision, device
        ``"no"``, ``"bf16"`` or ``"fp16"``; ``"cpu"``, ``"cuda"`` or None for the best there is.
    gradient_checkpointing
        Run parts of the model below the attacked layers once more in backward instead of keeping
        what they computed: less memory, more time, the same result (`models.checkpointed`).
    gallery
        How many images `evaluate` keeps with their heatmaps, evenly drawn.
    workers
        Processes that decode images.
    notes
        More entries for the run directory's config, e.g. where the model came from.
    on_step
        Called after every step with the fine-tuning's name (``"fool"`` or ``"control"``) and its
        row of the history.
    quiet
        Show no progress.

    Returns
    -------
    FoolResult

    Raises
    ------
    TrompeError
        If something given can't be used (before anything starts), the loss stops being finite, or
        the run directory can't be used.
    """
    terms = _terms(explainer, objective, weight)
    if schedule not in SCHEDULES:
        raise TrompeError(f"There is no schedule '{schedule}'; choose {' or '.join(SCHEDULES)}.")
    if keep not in get_args(Keep):
        raise TrompeError(f"keep can't be '{keep}'; choose {' or '.join(get_args(Keep))}.")
    accelerator = accelerator_for(device, precision)
    original = copy.deepcopy(model).to(accelerator.device)
    limits = {"max_accuracy_drop": max_accuracy_drop, "max_grad_norm": max_grad_norm}
    numbers = {"lr": lr, "steps": steps, "batch_size": batch_size}
    numbers |= {name: limit for name, limit in limits.items() if limit is not None}
    sample = _check(original, terms, data, fool_data, held_out, numbers)
    if held_out is not None and max_accuracy_drop is None:
        raise TrompeError("held_out is only used with max_accuracy_drop; give both, or neither.")
    terms = [Term(t.explainer.resolve(original, sample), t.objective, t.weight) for t in terms]
    if gradient_checkpointing:
        with checkpointed(original, sample, _layers(t for t in terms if t.weight)):
            pass  # it can be done
    judges = default_judges(original, sample, [t.explainer for t in terms], eval_explainer)
    objectives = list(dict.fromkeys(t.objective for t in terms))
    if eval_data is not None:
        check_evaluation(original, eval_data, eval_fool_data, objectives)

    settings: dict[str, Any] = {
        "explainer": [str(t.explainer) for t in terms],
        "objective": [str(t.objective) for t in terms],
        "weight": [t.weight for t in terms],
        "eval_explainer": [str(e) for e in judges],
        "lr": lr,
        "schedule": schedule,
        "steps": steps,
        "batch_size": batch_size,
        "fool_batch_size": fool_batch_size,
        "seed": seed,
        "keep": keep,
        "control": control,
        **limits,
        "precision": precision,
        "gradient_checkpointing": gradient_checkpointing,
        "device": device,
        "checkpoint_every": checkpoint_every,
    }

    tuned_on = data
    if max_accuracy_drop is not None and held_out is None:
        tuned_on, held_out = parted(data, seed)

    batches = Batches(tuned_on, batch_size, seed, workers)
    fool_batches = None
    if fool_data is not None:
        fool_batches = Batches(fool_data, fool_batch_size or batch_size, seed, workers)

    def run(directory: Path | None) -> FoolResult:
        def tune(chosen: list[Term], name: str) -> tuple[nn.Module, pd.DataFrame]:
            return _fine_tune(
                original,
                chosen,
                batches,
                fool_batches,
                lr=lr,
                schedule=schedule,
                steps=steps,
                keep=keep,
                max_grad_norm=max_grad_norm,
                precision=precision,
                device=device,
                checkpointed_on=sample if gradient_checkpointing else None,
                name=name,
                directory=directory,
                checkpoint_every=checkpoint_every,
                held_out=held_out if chosen else None,
                max_accuracy_drop=max_accuracy_drop,
                on_step=on_step,
                quiet=quiet,
            )

        manipulated, history = tune([t for t in terms if t.weight], "fool")
        honest, honest_history = tune([], "control") if control else (None, None)
        evaluation = None
        if eval_data is not None:
            evaluation = evaluate(
                original,
                manipulated,
                eval_data,
                explainers=judges,
                objective=objectives,
                control=honest,
                fool_data=eval_fool_data,
                attacked=[(t.explainer, t.objective) for t in terms if t.weight],
                gallery=gallery,
                workers=workers,
                quiet=quiet,
            )
            if directory is not None and processes.is_main():
                evaluation.save(directory / "evaluation")
        return FoolResult(manipulated, honest, history, honest_history, evaluation, directory)

    if run_dir is None:
        return run(None)
    config = {**(notes or {}), **settings}
    with runs.opened(Path(run_dir), config, runs.fingerprint(original, len(data))) as directory:
        runs.require_space(directory, original, 8)
        return run(directory)


def _fine_tune(
    original: nn.Module,
    terms: list[Term],
    batches: Batches,
    fool_batches: Batches | None,
    *,
    lr: float,
    schedule: str,
    steps: int,
    keep: Keep,
    max_grad_norm: float | None,
    precision: str,
    device: str | None,
    checkpointed_on: Tensor | None,
    name: str,
    directory: Path | None,
    checkpoint_every: int,
    held_out: Images | None,
    max_accuracy_drop: float | None,
    on_step: OnStep | None,
    quiet: bool,
) -> tuple[nn.Module, pd.DataFrame]:
    accelerator = accelerator_for(device, precision)
    model = copy.deepcopy(original).to(accelerator.device)
    saving: AbstractContextManager[None] = nullcontext()
    if checkpointed_on is not None:
        saving = checkpointed(model, checkpointed_on, _layers(terms))

    def fit(folder: Path | None) -> pd.DataFrame:
        model.eval().requires_grad_(True)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
        scheduler = SCHEDULES[schedule](optimizer, lr, steps)
        prepared = accelerator.prepare_model(model, evaluation_mode=True)
        optimizer, scheduler = accelerator.prepare(optimizer, scheduler)
        loss = StepLoss(
            original,
            prepared,
            terms,
            batches,
            fool_batches,
            keep=keep,
            folder=folder,
        )
        with saving:
            rows = optimise(
                accelerator,
                prepared,
                optimizer,
                loss.sources,
                loss,
                steps=steps,
                title=name,
                directory=folder,
                checkpoint_every=checkpoint_every,
                extra=loss.kept,
                on_step=on_step,
                scheduler=scheduler,
                max_grad_norm=max_grad_norm,
                quiet=quiet,
            )
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        history = pd.DataFrame(rows)
        if held_out is not None and max_accuracy_drop is not None:
            history["alpha"] = walk_back(original, model, held_out, max_accuracy_drop)
        return history

    history = once(model, directory, name, fit, suffix="" if name == "fool" else f"-{name}")
    for parameter, before in zip(model.parameters(), original.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
        parameter.grad = None
    return model, history


def _layers(terms: Iterable[Term]) -> list[str]:
    return [str(term.explainer.layer) for term in terms]


def _terms(
    explainer: Explainer | Sequence[Explainer],
    objective: Objective | Sequence[Objective],
    weight: float | Sequence[float],
) -> list[Term]:
    explainers = [explainer] if isinstance(explainer, Explainer) else list(explainer)
    objectives = [objective] if isinstance(objective, Objective) else list(objective)
    weights = [weight] if isinstance(weight, int | float) else list(weight)
    count = max(len(explainers), len(objectives), len(weights))
    if {len(explainers), len(objectives), len(weights)} - {1, count}:
        raise TrompeError(
            f"There are {len(explainers)} explainers, {len(objectives)} objectives and "
            f"{len(weights)} weights; give one of each, or the same number of those that vary."
        )
    if not all(math.isfinite(w) and w >= 0 for w in weights):
        raise TrompeError(f"A weight is a number of at least 0; {weights} is not.")
    return [
        Term(
            explainers[i % len(explainers)],
            objectives[i % len(objectives)],
            weights[i % len(weights)],
        )
        for i in range(count)
    ]


def _check(
    model: nn.Module,
    terms: Sequence[Term],
    data: Images,
    fool_data: Images | None,
    held_out: Images | None,
    numbers: Mapping[str, float],
) -> Tensor:
    """Refuse what can't work; returns one image ``[1, 3, H, W]`` on the model's device."""
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise TrompeError(f"{name} must be above 0, not {value}.")
    for term in terms:
        if term.weight and not term.explainer.differentiable:
            raise TrompeError(
                f"{term.explainer} can't be attacked: its maps have no gradient in the model's "
                "parameters. Attack another explainer, and evaluate with this one (eval_explainer)."
            )
    if not len(data):
        raise TrompeError("There is no image to fine-tune on.")
    composed = [t.objective for t in terms if t.objective.on_composites]
    if composed and fool_data is None:
        raise TrompeError(
            f"The objective {composed[0]} needs fool_data: images that hold both classes, such as "
            "trompe.Pairs makes."
        )
    if not composed and fool_data is not None:
        raise TrompeError("fool_data is only used by the objective active; leave it out.")
    image = data[0][0]
    count = class_count(model, image)
    for objective in composed:
        for target in objective.classes(torch.tensor([0])):
            check_class(int(target), count, str(objective))
    for dataset in (data, fool_data, held_out):
        if dataset is not None:
            check_labels(dataset, count)
    return placed(image[None], model)
