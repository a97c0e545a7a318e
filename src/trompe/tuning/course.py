"""The fine-tunings of one lie: itself and its control, from the same weights on the same images."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from trompe.base import processes
from trompe.data.images import Images
from trompe.data.subset import Part, parted
from trompe.evaluation.accuracy import accuracy
from trompe.models import checkpointed, copied
from trompe.models.stage import stage
from trompe.tuning.accelerator import accelerating
from trompe.tuning.budget import walk_back
from trompe.tuning.loop import Batches, OnStep, once, optimise
from trompe.tuning.loss import StepLoss
from trompe.tuning.lying import Lying
from trompe.tuning.pilot import (
    JUDGED,
    MOST_STEPS,
    Average,
    Found,
    Pilot,
    Rates,
    Replay,
    rates_for,
    weighed,
)
from trompe.tuning.recipe import scheduler
from trompe.tuning.term import Term

Sources = Mapping[int | None, Batches]


@dataclass(frozen=True)
class Course:
    """What the fine-tunings of one run share.

    Attributes
    ----------
    recipe
        The settings.
    original
        w0.
    sample
        One image ``[1, 3, H, W]``.
    terms, sources
        The lies, and batches by the data that they look at; None stands for those of the
        classification.
    moves
        The names of the parameters that are fine-tuned.
    held_out
        Images that are not fine-tuned on.
    judges, judged_on
        Where settings are found: the lies, and batches of the images that they are judged on.
    """

    recipe: Lying
    original: nn.Module
    sample: Tensor
    terms: Sequence[Term]
    sources: Sources
    moves: Collection[str]
    held_out: Images | None
    on_step: OnStep | None
    judges: Sequence[Term] = ()
    judged_on: Sources = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        recipe: Lying,
        original: nn.Module,
        sample: Tensor,
        attacked: Sequence[Term],
        data: Images,
        held_out: Images | None,
        on_step: OnStep | None,
    ) -> Course:
        """As a recipe says; what it leaves open is found."""
        names = [name for name, _ in original.named_parameters()]
        if recipe.lr is not None:
            sources = _sources(recipe, recipe.batch(sample), data, attacked)
            return cls(recipe, original, sample, attacked, sources, names, held_out, on_step)
        assert held_out is not None
        parts = {id(t.data): parted(t.data, recipe.seed) for t in attacked if t.data is not None}
        tuned_on, judged_on = (
            [t if t.data is None else replace(t, data=parts[id(t.data)][side]) for t in attacked]
            for side in (0, 1)
        )
        sources = _sources(recipe, recipe.batch(sample), data, tuned_on, most=len(data))
        terms = weighed(original, tuned_on, sources, recipe.explained)
        judges = [replace(term, data=t.data) for term, t in zip(terms, judged_on, strict=True)]
        few = Part(held_out, range(min(JUDGED, len(held_out))))
        with torch.no_grad():
            sizes = [t.explainer(original, sample, 0).shape[1:] for t in attacked]
        height, width = max(sizes, key=math.prod)
        moving = stage(original, sample, (height, width))
        known = set(map(id, moving))
        return cls(
            recipe,
            original,
            sample,
            terms,
            sources,
            [name for name, p in original.named_parameters() if id(p) in known],
            held_out,
            on_step,
            judges,
            _sources(recipe, recipe.batch(sample), few, judges, most=len(few)),
        )

    def tuned(
        self, name: str, directory: Path | None, taken: Sequence[float] = ()
    ) -> tuple[nn.Module, pd.DataFrame, Found | None]:
        """The model after one fine-tuning, its history, and the settings that were found.

        The control has no lies, and repeats the rates ``taken`` by the lie, if they were found.
        """
        recipe = self.recipe
        model = copied(self.original)
        terms = [] if name == "control" else self.terms
        found: Found | None = None

        def fit(folder: Path | None) -> pd.DataFrame:
            nonlocal found
            with accelerating(recipe.device, recipe.precision) as accelerator, ExitStack() as stack:
                for key, parameter in model.eval().named_parameters():
                    parameter.requires_grad_(key in self.moves)
                steps = recipe.steps or MOST_STEPS
                optimizer = torch.optim.Adam(_groups(model, recipe.lr), fused=True)
                rate = None
                if recipe.lr is not None:
                    rate = scheduler(optimizer, recipe.schedule, recipe.lr, steps, warm_up=0.1)
                prepared = accelerator.prepare_model(model, evaluation_mode=True)
                optimizer, rate = accelerator.prepare(optimizer, rate)
                loss = self._loss(prepared, terms, self.sources, folder)
                pilot: Pilot | Replay | None = None
                if recipe.lr is None:
                    average = Average(model, copied(self.original))
                    if terms:
                        judge = self._loss(average.model, self.judges, self.judged_on)
                        budget = recipe.max_accuracy_drop
                        rates = Rates(optimizer)
                        pilot = Pilot(average, rates, loss, judge, self._top1, steps, budget)
                    else:
                        pilot = Replay(average, Rates(optimizer), taken)
                if recipe.gradient_checkpointing:
                    layers = [str(term.explainer.layer) for term in terms]
                    stack.enter_context(checkpointed(model, self.sample, layers))
                rows = optimise(
                    accelerator,
                    prepared,
                    optimizer,
                    loss.sources,
                    loss,
                    steps=steps,
                    title=name,
                    directory=folder,
                    checkpoint_every=recipe.checkpoint_every,
                    extra=loss.kept if pilot is None else [*loss.kept, pilot],
                    on_step=self.on_step,
                    scheduler=rate,
                    pilot=pilot,
                    max_grad_norm=recipe.max_grad_norm,
                    quiet=recipe.quiet,
                )
                accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
            history = pd.DataFrame(rows)
            if pilot is not None:
                pilot.finish()
            if isinstance(pilot, Pilot):
                assert self.held_out is not None
                found = pilot.found(model, len(self.held_out))
                if directory is not None:
                    found.save(directory)
            if terms and self.held_out is not None and recipe.max_accuracy_drop is not None:
                history["alpha"] = walk_back(
                    self.original, model, self.held_out, recipe.max_accuracy_drop
                )
            return history

        history = once(model, directory, name, fit, suffix="" if name == "fool" else f"-{name}")
        for parameter, before in zip(model.parameters(), self.original.parameters(), strict=True):
            parameter.requires_grad_(before.requires_grad)
            parameter.grad = None
        if found is None and directory is not None and terms:
            found = Found.load(directory)
        return model, history, found

    def _top1(self, model: nn.Module) -> float:
        """On all held-out images."""
        assert self.held_out is not None
        return accuracy(model, self.held_out)[0]

    def _loss(
        self,
        model: nn.Module,
        terms: Sequence[Term],
        sources: Sources,
        folder: Path | None = None,
    ) -> StepLoss:
        return StepLoss(
            self.original,
            model,
            terms,
            sources,
            opposition=self.recipe.opposition,
            faintness=self.recipe.faintness,
            keep=self.recipe.held_to,
            target=self.recipe.explained,
            folder=folder,
        )


def _groups(model: nn.Module, lr: float | None) -> list[dict[str, Any]]:
    """What moves in a model, by learning rate."""
    moving = [p for p in model.parameters() if p.requires_grad]
    if lr is not None:
        return [{"params": moving, "lr": lr}]
    by_rate: dict[float, list[nn.Parameter]] = {}
    for parameter, rate in zip(moving, rates_for(moving), strict=True):
        by_rate.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()]


def _sources(
    recipe: Lying, size: int, data: Images, terms: Iterable[Term], most: int | None = None
) -> dict[int | None, Batches]:
    """Batches by the data that terms look at; None stands for those of the classification.

    They have no more images than ``most``.
    """

    def batches(images: Images, wanted: int) -> Batches:
        if most is not None:
            together = processes.count()
            wanted = max(1, min(wanted, most, len(images)) // together) * together
        return Batches(images, wanted, recipe.seed, recipe.workers)

    sources: dict[int | None, Batches] = {None: batches(data, size)}
    for term in terms:
        if term.data is not None and id(term.data) not in sources:
            sources[id(term.data)] = batches(term.data, recipe.fool_batch_size or size)
    return sources
