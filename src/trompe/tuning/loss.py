"""The loss of one step of fooling: L_CE + Σ λ · L_F, from one forward pass per batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trompe import runs
from trompe.base import processes
from trompe.base.messages import unique
from trompe.data.triggers import preprocessing_of
from trompe.errors import TrompeError
from trompe.explainers import Explainer, Recording
from trompe.explainers.targets import Explainable, Label, Target
from trompe.maps import faintness, full_precision, opposition
from trompe.metrics import in_top
from trompe.models.call import placed
from trompe.models.hooks import evaluation_mode
from trompe.tuning.loop import Batches, Loss
from trompe.tuning.term import Term

CLASSIFICATION = "classification"
LOGITS = "logits"
SUCCESS, DIVERGENCE = "success", "divergence"
LABEL = Label()
Key = Explainer | str
Targets = tuple[Explainable, ...]
Keep = Literal["labels", "predictions"]


class StepLoss:
    """From the batches of a step to its loss.

    Parameters
    ----------
    original, model
        w0, and the model that is fine-tuned.
    terms
        What to add to the classification loss.
    sources
        Batches by the ``id`` of the data that terms look at; None stands for those of the
        classification loss, which terms without data of their own look at.
    opposition, faintness
        Weights of `maps.opposition` and `maps.faintness` of the attacked maps.
    keep
        What the classification loss holds the model to: the labels, or the original's predictions;
        also where a trigger is, unless it flips them.
    target
        What the explainers explain: by default what the objectives ask for.
    folder
        Where what the original says is kept; in memory if None.

    Attributes
    ----------
    terms, names, weights
        What is added, what it is called among the parts of a loss, and λ of each.
    scale
        Of all weights; `Pilot` changes it.
    kept
        What the original says, which belongs to a checkpoint.
    """

    def __init__(
        self,
        original: nn.Module,
        model: nn.Module,
        terms: Sequence[Term],
        sources: Mapping[int | None, Batches],
        *,
        opposition: float = 1.0,
        faintness: float = 1.0,
        keep: Keep = "labels",
        target: Target = LABEL,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        regularisers = {"opposition": opposition, "faintness": faintness}
        self._weights = {name: weight for name, weight in regularisers.items() if weight}
        first = sources[None]
        plain = id(first), ("label",), None
        seen: dict[Any, tuple[list[Term], Batches]] = {plain: ([], first)}
        parted: dict[Any, list[Term]] = {(plain, None): []}
        for term in terms:
            source = first if term.data is None else sources[id(term.data)]
            objective = term.objective
            alone = objective if objective.on_composites else None
            key = id(source), objective.targets, alone
            seen.setdefault(key, ([], source))[0].append(term)
            parted.setdefault((key, objective.trigger), []).append(term)
        before = {
            key: _Before(
                original,
                tuple(dict.fromkeys(t.explainer for t in chosen if t.objective.needs_original)),
                source,
                folder and folder / f"group-{i}",
                logits=key == plain and keep == "predictions",
            )
            for i, (key, (chosen, source)) in enumerate(seen.items())
        }
        self.kept = [*before.values()]
        self._groups = [
            _Group(original, chosen, seen[key][1], before[key], self._weights, target)
            for (key, _), chosen in parted.items()
        ]
        self.sources = list(dict.fromkeys(group.batches for group in self._groups))
        self.names = unique(map(str, terms))
        self._names = dict(zip(map(id, terms), self.names, strict=True))
        self.terms = terms
        self.weights = [1.0 if term.weight is None else term.weight for term in terms]
        self.scale = 1.0

    def __call__(self, step: Sequence[Sequence[Tensor]]) -> Loss:
        """The loss of one batch per source, each as ``(indices, images, labels)``."""
        parts: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        shares: dict[str, Tensor] = {}
        successes: dict[str, Tensor] = {}
        weights = dict(zip(self._names, self.weights, strict=True))
        said: dict[_Before, dict[Key, Tensor]] = {}
        for group in self._groups:
            indices, images, labels = step[self.sources.index(group.batches)]
            images = placed(images, self.model)
            labels = labels.to(images.device)
            if group.kept not in said:
                said[group.kept] = group.before(indices, images, labels)
            before = said[group.kept]
            with Recording(self.model, group.explainers) as forward:
                logits = forward(group.seen(indices, images))
                if group.classified:
                    own = before[LOGITS].softmax(1) if LOGITS in before else labels
                    target = own
                    if group.flip_to is not None:
                        target = torch.full_like(labels, group.flip_to)
                    value = F.cross_entropy(logits.float(), target)
                    parts[group.classified] = value
                    total = total + value
                    if LOGITS in before and group.flip_to is None:
                        further = value.detach() - _entropy(own)
                        shares[DIVERGENCE] = further.maximum(shares.get(DIVERGENCE, further))
                    if group is self._groups[0]:
                        shares["top1"] = in_top(logits, labels, 1).float().mean()
                found, kept_up = group.losses(forward, logits, labels, before)
                for term, value, success in found:
                    parts[self._names[id(term)]] = value
                    total = total + self.scale * weights[id(term)] * value
                    successes[f"{SUCCESS} {len(successes) + 1}"] = success
                for name, value in kept_up.items():
                    parts[name] = parts.get(name, 0) + value
                    total = total + self._weights[name] * value
        assert isinstance(total, Tensor)
        if successes:
            shares[SUCCESS] = torch.stack(list(successes.values())).mean()
        if len(successes) > 1:
            shares |= successes
        return Loss(total, parts, {name: share.item() for name, share in shares.items()})


class _Group:
    """Terms that explain the same targets of the same images, under one trigger or none."""

    def __init__(
        self,
        original: nn.Module,
        terms: list[Term],
        batches: Batches,
        kept: _Before,
        regularisers: Collection[str],
        target: Target,
    ) -> None:
        self.original = original
        self.terms = terms
        self.batches = batches
        self.kept = kept
        self.regularisers = regularisers
        self.target = target
        self.explainers = tuple(dict.fromkeys(t.explainer for t in terms))
        asked = terms[0].objective if terms else None
        self.trigger = None if asked is None else asked.trigger
        self.flip_to = None if asked is None else asked.flip_to
        self.classified = "" if asked and asked.on_composites else CLASSIFICATION
        if self.trigger is not None:
            self.preprocessing = preprocessing_of(batches.data)
            self.classified += f" under {self.trigger}"
        self._sizes = self._original_sizes() if terms and "faintness" in regularisers else []

    def before(self, indices: Tensor, images: Tensor, labels: Tensor) -> dict[Key, Tensor]:
        """What the original says of a batch."""
        return self.kept.of(indices, images, self._targets(labels))

    def seen(self, indices: Tensor, images: Tensor) -> Tensor:
        """What the model is shown of a batch."""
        if self.trigger is None:
            return images
        return self.trigger.on(images, indices, self.preprocessing)

    def losses(
        self, forward: Recording, logits: Tensor, labels: Tensor, before: Mapping[Key, Tensor]
    ) -> tuple[list[tuple[Term, Tensor, Tensor]], dict[str, Tensor]]:
        """Loss and success rate of every term on one recorded batch; the regularisers."""
        if not self.terms:
            return [], {}
        shown = labels if self.flip_to is None else torch.full_like(labels, self.flip_to)
        raw = [
            dict(zip(self.explainers, forward.maps(t), strict=True)) for t in self._targets(shown)
        ]
        heatmaps = [{e: e.heatmap(m) for e, m in target.items()} for target in raw]
        result = []
        for term in self.terms:
            maps = tuple(target[term.explainer] for target in heatmaps)
            known = before.get(term.explainer)
            original = None if known is None else known.unbind(1)
            each = term.objective.loss(maps, original)
            if each.shape != labels.shape:
                raise TrompeError(
                    f"The objective {term.objective} returns a loss {list(each.shape)} for "
                    f"{len(labels)} images; return one for each, [N]."
                )
            value = each.mean()
            with torch.no_grad():
                losses = term.objective.test_loss(tuple(m.detach() for m in maps), original)
                fooled = torch.stack([term.objective.fooled(t) for t in losses])
                if self.flip_to is not None:
                    fooled &= logits.argmax(1) == self.flip_to
            result.append((term, value, fooled.float().mean()))
        attacked = [maps for target in raw for maps in target.values()]
        added: dict[str, Tensor] = {}
        if "opposition" in self.regularisers:
            against = [opposition(maps, _size(maps)).mean() for maps in attacked]
            added["opposition"] = torch.stack(against).sum()
        if "faintness" in self.regularisers:
            faint = [faintness(*pair).mean() for pair in zip(attacked, self._sizes, strict=True)]
            added["faintness"] = torch.stack(faint).sum()
        return result, added

    def _targets(self, labels: Tensor) -> Targets:
        if not isinstance(self.target, Label):
            return (self.target,)
        return self.terms[0].objective.classes(labels) if self.terms else (labels,)

    def _original_sizes(self) -> list[Tensor]:
        """The mean size of the original's raw maps on the first batch, also in a resumed run."""
        _, images, labels = next(self.batches.between(0, 1))
        images = placed(images, self.original)
        targets = self._targets(labels.to(images.device))
        with (
            torch.no_grad(),
            evaluation_mode(self.original),
            Recording(self.original, self.explainers) as forward,
        ):
            forward(images)
            return [_size(maps) for t in targets for maps in forward.maps(t)]


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(1).mean()
    return entropy


def _size(maps: Tensor) -> Tensor:
    return processes.mean(full_precision(maps.detach()).abs().mean())


class _Before:
    """The original's heatmaps and logits, computed when an image is first met, and then kept.

    Which images are done belongs to the checkpoint; the rest lies in memory, or in files beside the
    checkpoints. What is said of augmented images is not kept; with several processes it is kept
    only in the memory of each.
    """

    def __init__(
        self,
        original: nn.Module,
        explainers: tuple[Explainer, ...],
        batches: Batches,
        folder: Path | None,
        *,
        logits: bool,
    ) -> None:
        self.original = original
        self.explainers = explainers
        self.keys: tuple[Key, ...] = (*explainers, LOGITS) if logits else explainers
        self.alone = processes.count() == 1
        self.folder = folder if self.alone else None
        self.keep = not getattr(batches.data, "augmented", False)
        self.done = torch.zeros(batches.size, dtype=torch.bool)
        self.store: dict[Key, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if self.alone:
            self.done = state["done"]

    def of(self, indices: Tensor, images: Tensor, targets: Targets) -> dict[Key, Tensor]:
        """Heatmaps ``[N, targets, h, w]`` by explainer; logits ``[N, K]``, if they are wanted."""
        if not self.keys:
            return {}
        if not self.keep:
            return self._said(images, targets)
        rows = indices.cpu()
        missing = ~self.done[rows]
        if bool(missing.any()):
            for key, found in self._said(images, targets).items():
                self._stored(key, found)[rows[missing]] = found.cpu()[missing]
            self.done[rows] = True
        return {key: self._stored(key)[rows].to(images.device) for key in self.keys}

    @torch.no_grad()
    def _said(self, images: Tensor, targets: Targets) -> dict[Key, Tensor]:
        with evaluation_mode(self.original), Recording(self.original, self.explainers) as forward:
            said: dict[Key, Tensor] = {LOGITS: forward(images).float()}
            found = [forward.heatmaps(t) for t in targets] if self.explainers else []
        said |= {e: torch.stack(of, 1) for e, *of in zip(self.explainers, *found, strict=True)}
        return {key: said[key] for key in self.keys}

    def _stored(self, key: Key, like: Tensor | None = None) -> Tensor:
        if key not in self.store:
            path = self.folder and self.folder / f"said-{self.keys.index(key)}.npy"
            if path is not None and bool(self.done.any()):
                array: Any = np.lib.format.open_memmap(path, "r+")
            else:
                assert like is not None
                shape = (len(self.done), *like.shape[1:])
                array = runs.array(path, shape) if path else np.zeros(shape, np.float32)
            self.store[key] = torch.from_numpy(array)
        return self.store[key]
