"""The loss of one step of fooling: L_CE + Σ λ · L_F, from one forward pass per batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trompe import processes, rundir
from trompe.budget import Budget
from trompe.evaluate import placed
from trompe.explainers import Explainer, Recording
from trompe.loop import Batches, Loss
from trompe.maps import faintness, full_precision, opposition
from trompe.metrics import in_top
from trompe.models.layers import evaluation_mode
from trompe.objectives import Maps, Objective


@dataclass(frozen=True)
class Term:
    """One explainer pulled by one objective, with its weight λ."""

    explainer: Explainer
    objective: Objective
    weight: float

    def __str__(self) -> str:
        return f"{self.explainer} {self.objective}"


class StepLoss:
    """From the batches of a step to its loss.

    Parameters
    ----------
    original, model
        w0, and the model that is fine-tuned.
    terms
        What to add to the classification loss.
    batches, fool_batches
        D for the classification and the passive foolings, D_fool for the active ones.
    folder
        Where the original's maps are kept; in memory if None.
    budget
        What scales every λ.
    """

    def __init__(
        self,
        original: nn.Module,
        model: nn.Module,
        terms: Sequence[Term],
        batches: Batches,
        fool_batches: Batches | None = None,
        *,
        folder: Path | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.model = model
        self.budget = budget
        composed = [t for t in terms if t.objective.on_composites]
        parted = [([t for t in terms if not t.objective.on_composites], batches)] + [
            ([t for t in composed if t.objective == objective], fool_batches)
            for objective in dict.fromkeys(t.objective for t in composed)
            if fool_batches is not None
        ]
        self._groups = [
            _Group(original, chosen, source, folder and folder / f"group-{i}")
            for i, (chosen, source) in enumerate(parted)
        ]
        self.sources = list(dict.fromkeys(group.batches for group in self._groups))

    @property
    def kept(self) -> list[_OriginalMaps]:
        """The original's maps, which belong to a checkpoint."""
        return [group.kept for group in self._groups]

    def __call__(self, step: Sequence[Sequence[Tensor]]) -> Loss:
        """The loss of one batch per source, each as ``(indices, images, labels)``."""
        parts: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        shares: dict[str, Tensor] = {}
        successes: list[Tensor] = []
        factor = self.budget.factor if self.budget else 1.0
        for group in self._groups:
            indices, images, labels = step[self.sources.index(group.batches)]
            images = placed(images, self.model)
            labels = labels.to(images.device)
            with Recording(self.model, group.explainers) as forward:
                logits = forward(images)
                if group is self._groups[0]:
                    total = F.cross_entropy(logits.float(), labels)
                    parts["classification"] = total
                    shares["top1"] = in_top(logits, labels, 1).float().mean()
                found, kept_up = group.losses(forward, indices, images, labels)
                for term, value, success in found:
                    parts[str(term)] = value
                    total = total + factor * term.weight * value
                    successes.append(success)
                for name, value in kept_up.items():
                    parts[name] = parts.get(name, 0) + value
                    total = total + value
        assert isinstance(total, Tensor)
        if successes:
            shares["success"] = torch.stack(successes).mean()
        figures = {name: share.item() for name, share in shares.items()}
        if self.budget:
            figures |= {"factor": factor, "drop": self.budget.drop}
        return Loss(total, parts, figures)


class _Group:
    """Terms that explain the same classes of the same images, from one forward pass."""

    def __init__(
        self, original: nn.Module, terms: list[Term], batches: Batches, folder: Path | None
    ) -> None:
        self.original = original
        self.terms = terms
        self.batches = batches
        self.explainers = tuple(dict.fromkeys(t.explainer for t in terms))
        self.kept = _OriginalMaps(
            original,
            tuple(dict.fromkeys(t.explainer for t in terms if t.objective.needs_original)),
            batches,
            folder,
        )

    def losses(
        self, forward: Recording, indices: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[list[tuple[Term, Tensor, Tensor]], dict[str, Tensor]]:
        """Loss and success rate of every term on one recorded batch; opposition and faintness."""
        if not self.terms:
            return [], {}
        classes = self.terms[0].objective.classes(labels)
        raw = [dict(zip(self.explainers, forward.maps(c), strict=True)) for c in classes]
        heatmaps = [{e: e.heatmap(m) for e, m in target.items()} for target in raw]
        before = self.kept.maps(indices, images, classes)
        result = []
        for term in self.terms:
            maps = tuple(target[term.explainer] for target in heatmaps)
            original = before.get(term.explainer)
            value = term.objective.loss(maps, original).mean()
            with torch.no_grad():
                losses = term.objective.test_loss(tuple(m.detach() for m in maps), original)
                fooled = torch.stack([term.objective.fooled(t) for t in losses]).float().mean()
            result.append((term, value, fooled))
        attacked = [maps for target in raw for maps in target.values()]
        against = [opposition(maps, _size(maps)).mean() for maps in attacked]
        faint = [faintness(*pair).mean() for pair in zip(attacked, self._sizes, strict=True)]
        return result, {
            "opposition": torch.stack(against).sum(),
            "faintness": torch.stack(faint).sum(),
        }

    @cached_property
    def _sizes(self) -> list[Tensor]:
        """The mean size of the original's raw maps on the first batch, also in a resumed run."""
        _, images, labels = next(self.batches.between(0, 1))
        images = placed(images, self.original)
        classes = self.terms[0].objective.classes(labels.to(images.device))
        with (
            torch.no_grad(),
            evaluation_mode(self.original),
            Recording(self.original, self.explainers) as forward,
        ):
            forward(images)
            return [_size(maps) for c in classes for maps in forward.maps(c)]


def _size(maps: Tensor) -> Tensor:
    return processes.mean(full_precision(maps.detach()).abs().mean())


class _OriginalMaps:
    """The original's heatmaps, computed when an image is first met and kept from then on.

    Which images are done belongs to the checkpoint; the maps themselves lie in memory, or in files
    beside the checkpoints. Maps of augmented images are not kept; those of several processes only
    in the memory of each.
    """

    def __init__(
        self,
        original: nn.Module,
        explainers: tuple[Explainer, ...],
        batches: Batches,
        folder: Path | None,
    ) -> None:
        self.original = original
        self.explainers = explainers
        self.alone = processes.count() == 1
        self.folder = folder if self.alone else None
        self.keep = not getattr(batches.data, "augmented", False)
        self.done = torch.zeros(batches.size, dtype=torch.bool)
        self.store: dict[Explainer, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if self.alone:
            self.done = state["done"]

    def maps(self, indices: Tensor, images: Tensor, classes: Maps) -> dict[Explainer, Maps]:
        """One heatmap batch per explainer and class."""
        if not self.explainers:
            return {}
        if not self.keep:
            return self._explain(images, classes)
        rows = indices.cpu()
        missing = ~self.done[rows]
        if bool(missing.any()):
            for explainer, heatmaps in self._explain(images, classes).items():
                found = torch.stack(heatmaps, 1).cpu()
                self._stored(explainer, found)[rows[missing]] = found[missing]
            self.done[rows] = True
        return {
            e: tuple(self._stored(e)[rows].to(images.device).unbind(1)) for e in self.explainers
        }

    @torch.no_grad()
    def _explain(self, images: Tensor, classes: Maps) -> dict[Explainer, Maps]:
        with evaluation_mode(self.original), Recording(self.original, self.explainers) as forward:
            forward(images)
            found = [forward.heatmaps(c) for c in classes]
        return dict(zip(self.explainers, zip(*found, strict=True), strict=True))

    def _stored(self, explainer: Explainer, like: Tensor | None = None) -> Tensor:
        if explainer not in self.store:
            path = self.folder and self.folder / f"maps-{self.explainers.index(explainer)}.npy"
            if path is not None and bool(self.done.any()):
                array: Any = np.lib.format.open_memmap(path, "r+")
            else:
                assert like is not None
                shape = (len(self.done), *like.shape[1:])
                array = rundir.array(path, shape) if path else np.zeros(shape, np.float32)
            self.store[explainer] = torch.from_numpy(array)
        return self.store[explainer]
