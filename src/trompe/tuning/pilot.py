"""Settings found while a lie is learnt: how fast, how hard, how long.

The rate rises to one that moves each layer's output by a set share, and stays until the lie has
taken on the images of a step. Then it falls to 0, which brings the accuracy back. Weights are
averaged over the steps; now and then these are judged on images that are not fine-tuned on. They
are kept as soon as nearly all of these images are fooled and their predictions stay, and so does
top-1 on all held-out images, which are more. Where that is not reached, another round begins, with
a weight or a rate that goes by what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import floor, isfinite, log10
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from trompe import runs
from trompe.base import processes
from trompe.errors import TrompeError
from trompe.explainers.targets import Target
from trompe.models.hooks import evaluation_mode
from trompe.tuning.loop import Batches
from trompe.tuning.loss import DIVERGENCE, LABEL, SUCCESS, StepLoss
from trompe.tuning.term import Term

SHARE = 0.3  # of a layer's output that a step may move, were all its weights to move together
TRUSTED = 0.25  # divergence of the predictions, in nats, from which on the rate is lowered
LOWERED = 0.97  # by a step
WARM_UP = 20  # steps
AVERAGED = 0.97  # share of the averaged weights that a step leaves
TAKEN = 0.9  # share of the images of a step, averaged, that are fooled when the rate begins to fall
RECENT = 0.9  # share of that average that a step leaves
SLOW = 150  # steps in which a lie that does not take must gain
GAIN = 0.05  # so much, or its weight is doubled
SHORTEST, LONGEST = 60, 2000  # steps in which the rate falls
ROUNDS = 4
CHECK_EVERY = 50  # steps
JUDGED = 200  # images
FOOLED, LOST, DIVERGED = 0.97, 1.0, 0.1  # enough of them; points of top-1, nats that are nothing
PRICE = 5  # points of success that a point of top-1 is worth, or a twentieth of a nat
MOST_STEPS = 6000
FILE = "found.json"
FIRST = 4  # batches that weigh the terms


def rounded(value: float) -> float:
    """Two significant digits."""
    return round(value, 1 - floor(log10(abs(value)))) if value else 0.0


def rates_for(parameters: Sequence[nn.Parameter]) -> list[float]:
    """Adam's learning rate for each tensor of weights.

    A weight matrix of entries of size r with n inputs gives outputs of size √n · r; a step of Adam,
    which moves every entry by the rate, moves them by up to n times the rate. Its rate is the one
    at which that is the share `SHARE` (the reasoning of Yang, Simon and Bernstein 2023, "A Spectral
    Condition for Feature Learning"). What is no matrix takes the median of these rates.
    """
    own = [
        SHARE * float(p.detach().float().square().mean().sqrt()) / p[0].numel() ** 0.5
        if p.dim() > 1
        else 0.0
        for p in parameters
    ]
    known = sorted(rate for rate in own if rate > 0) or [1e-4]
    return [rounded(rate or known[len(known) // 2]) for rate in own]


@torch.no_grad()
def weighed(
    original: nn.Module,
    terms: Sequence[Term],
    sources: Mapping[int | None, Batches],
    target: Target = LABEL,
) -> list[Term]:
    """Terms as a lie whose settings are found takes them.

    Each pushes an image no further than its objective's ample margin, and where it has no weight,
    it gets the one at which the original's loss is 1, or that of unrelated maps, if the objective
    knows it: as much as the classification's is where a predicted probability falls to a third.
    """
    pushed = [replace(term, objective=_with_margin(term)) for term in terms]
    loss = StepLoss(original, original, pushed, sources, opposition=0, faintness=0, target=target)
    steps = zip(*(source.between(0, FIRST) for source in loss.sources), strict=True)
    with evaluation_mode(original):
        found = [loss(step).parts for step in steps]
    values = [[parts[name] for name in loss.names] for parts in found]
    device = next(original.parameters()).device
    means = processes.mean(torch.tensor(values, device=device).mean(0)).abs().tolist()
    return [
        term
        if term.weight is not None
        else replace(term, weight=_inverse(term.objective.unrelated() or value))
        for term, value in zip(pushed, means, strict=True)
    ]


def _with_margin(term: Term) -> Any:
    objective = term.objective
    if objective.margin is not None or objective.ample is None:
        return objective
    return replace(objective, margin=objective.ample)


def _inverse(value: float) -> float:
    return rounded(1 / value) if isfinite(value) and value > 0 else 1.0


@dataclass(frozen=True)
class Found:
    """What a run found, and what it reached on images that it did not fine-tune on.

    Attributes
    ----------
    lr
        The highest learning rate, in the median over the tensors of weights.
    objective, weight
        Each term's objective, with its margin, and its λ at the end.
    steps
        How many led to the weights that are kept.
    success, untouched
        The share of the judged images that are fooled, of several terms the smallest, and that
        share where the original is judged.
    judged
        How many images that is.
    drop
        Points of top-1 that are lost on all held-out images.
    held_out
        How many they are.
    ended
        Why it ended.
    """

    lr: float
    objective: tuple[str, ...]
    weight: tuple[float, ...]
    steps: int
    success: float
    untouched: float
    judged: int
    drop: float
    held_out: int
    ended: str

    def save(self, directory: Path) -> None:
        """Write it into a run directory."""
        if processes.is_main():
            runs.write_text(directory / FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, directory: Path) -> Found | None:
        """What a run directory holds of it.

        Raises
        ------
        TrompeError
            If it is damaged, or was written by another version.
        """
        path = directory / FILE
        if not path.exists():
            return None
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValueError as error:
            raise TrompeError(
                f"'{path}' can't be read ({error}): it is damaged, or from another version. "
                "Remove it to go on without what it says."
            ) from error

    def __str__(self) -> str:
        weights = ", ".join(f"{w:g}" for w in self.weight)
        return (
            f"Settings found: learning rate {self.lr:g}, weight {weights}, {self.steps} steps. It "
            f"ended because {self.ended}: {100 * self.success:.0f} % of {self.judged} held-out "
            f"images are fooled (untouched model {100 * self.untouched:.0f} %), top-1 on all "
            f"{self.held_out} is {0.0 - self.drop:+.1f} points."
        )


class Average:
    """The average of a model's weights over the last steps.

    Parameters
    ----------
    model
        What is fine-tuned.
    averaged
        A model of the same weights, which becomes the average.
    """

    def __init__(self, model: nn.Module, averaged: nn.Module) -> None:
        self.pairs = [
            (mean, now)
            for mean, now in zip(averaged.parameters(), model.parameters(), strict=True)
            if now.requires_grad
        ]
        self.model = averaged
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        left = min(AVERAGED, self.steps / (self.steps + 10))
        for mean, now in self.pairs:
            mean.lerp_(now, 1 - left)

    def weights(self) -> list[Tensor]:
        """A copy of the averaged weights."""
        return [mean.detach().clone() for mean, _ in self.pairs]

    @torch.no_grad()
    def finish(self, weights: Sequence[Tensor]) -> None:
        """Give the model that was fine-tuned these weights."""
        for (_, now), kept in zip(self.pairs, weights, strict=True):
            now.copy_(kept)

    @torch.no_grad()
    def load(self, weights: Sequence[Tensor], steps: int) -> None:
        """Go on from an average."""
        self.steps = steps
        for (mean, _), kept in zip(self.pairs, weights, strict=True):
            mean.copy_(kept)


class Rates:
    """The rates of an optimizer, as a share of the highest ones, which it has at first."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.highest = [group["lr"] for group in optimizer.param_groups]
        self.share = 1.0

    @property
    def median(self) -> float:
        """The median of the highest rates."""
        return float(sorted(self.highest)[len(self.highest) // 2])

    @property
    def now(self) -> float:
        """The same of the rates as they are."""
        return self.share * self.median

    def set(self, share: float) -> None:
        """Take a share of the highest rates."""
        self.share = share
        for group, highest in zip(self.optimizer.param_groups, self.highest, strict=True):
            group["lr"] = share * highest


@dataclass
class _State:
    """What a checkpoint holds beside weights."""

    step: int = 0
    begun: int = 0  # the step at which this round or the fall of its rate began
    length: int = SHORTEST  # steps in which the rate falls
    falling: bool = False
    round: int = 1
    peak: float = 1.0  # the highest rate of this round, as a share of the first one's
    scale: float = 1.0  # of the weights
    success: float = 0.0  # of the steps, averaged
    divergence: float = 0.0  # likewise
    last: float = 0.0  # the same, `SLOW` steps ago
    start: dict[str, float] = field(default_factory=dict)  # what the original reaches
    now: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    ended: str = ""


class Pilot:
    """Steers one fine-tuning and says when it is done.

    Parameters
    ----------
    average
        Of the weights of what is fine-tuned, which begin as the original's.
    rates
        Of the optimizer.
    loss
        Whose `StepLoss.scale` it sets.
    judge
        The loss of the average on held-out images.
    top1
        Of a model on all of them.
    steps
        At most.
    budget
        Points of top-1 that may be lost, if they are limited.
    """

    def __init__(
        self,
        average: Average,
        rates: Rates,
        loss: StepLoss,
        judge: StepLoss,
        top1: Callable[[nn.Module], float],
        steps: int,
        budget: float | None = None,
    ) -> None:
        self.average, self.rates = average, rates
        self.loss, self.judge, self.top1, self.steps = loss, judge, top1, steps
        self.lost = LOST if budget is None else min(LOST, budget / 2)
        self.state = _State()
        self.kept = average.weights()
        self._set_rate()

    @property
    def done(self) -> bool:
        """Whether no further step is to be taken."""
        return bool(self.state.ended)

    def __call__(self, row: Mapping[str, float]) -> dict[str, float]:
        """Look at the row of the step just taken; returns what to add to it."""
        s = self.state
        if not s.start:  # the average is the original
            s.start = s.now = {**self._judged(), "whole": self.top1(self.average.model)}
        rate = self.rates.now
        s.step += 1
        self.average.update()
        s.success = RECENT * s.success + (1 - RECENT) * row[SUCCESS]
        s.divergence = RECENT * s.divergence + (1 - RECENT) * row.get(DIVERGENCE, 0.0)
        fallen = s.falling and s.step - s.begun >= s.length
        last = s.step == self.steps
        if s.step % CHECK_EVERY == 0 or fallen or last:
            self._check()
        if last and not self.done:
            s.ended = "there were no more steps"
        if not self.done:
            self._go_on(fallen)
            self._set_rate()
        return {
            "lr": rate,
            "held_out_success": s.now["success"],
            "held_out_top1": s.now["top1"],
            "held_out_divergence": s.now[DIVERGENCE],
        }

    def finish(self) -> None:
        """Give the model the weights that are kept."""
        self.average.finish(self.kept)

    def found(self, model: nn.Module, held_out: int) -> Found:
        """What came of it: the model that is finished, and how many images are held out."""
        s = self.state
        whole = s.best["whole"] if "whole" in s.best else self.top1(model)
        return Found(
            lr=self.rates.median,
            objective=tuple(str(term.objective) for term in self.loss.terms),
            weight=tuple(rounded(w * s.scale) for w in self.loss.weights),
            steps=int(s.best["step"]),
            success=s.best["success"],
            untouched=s.start["success"],
            judged=self._batches * self.judge.sources[0].batch_size,
            drop=round(100 * (s.start["whole"] - whole), 6),
            held_out=held_out,
            ended=s.ended,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "state": asdict(self.state),
            "average": self.average.weights(),
            "kept": self.kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.state = _State(**state["state"])
        self.average.load(state["average"], self.state.step)
        self.kept = [kept.to(now) for kept, now in zip(state["kept"], self.kept, strict=True)]
        self.loss.scale = self.state.scale
        self._set_rate()

    @property
    def _batches(self) -> int:
        """How many batches of held-out images there are; rest is left out."""
        return max(1, self.judge.sources[0].size // self.judge.sources[0].batch_size)

    def _set_rate(self) -> None:
        s = self.state
        since = s.step - s.begun
        share = max(0.0, 1 - since / s.length) if s.falling else min(1.0, (since + 1) / WARM_UP)
        self.rates.set(s.peak * share)

    def _go_on(self, fallen: bool) -> None:
        """Let the rate begin to fall, or another round begin, if it is time."""
        s = self.state
        since = s.step - s.begun
        if fallen and s.round == ROUNDS:
            s.ended = f"{ROUNDS} rounds did not bring more"
        elif fallen:
            took = s.now["success"] >= FOOLED
            s.scale, s.peak = (s.scale / 2, s.peak / 2) if took else (s.scale * 2, s.peak)
            s.round, s.falling, s.begun, s.last = s.round + 1, False, s.step, 0.0
            s.length = min(2 * s.length, LONGEST)
        elif not s.falling and (s.success >= TAKEN or since >= LONGEST):
            s.length = min(max(s.length, since), LONGEST)
            s.falling, s.begun = True, s.step
        elif not s.falling:
            s.peak *= LOWERED if s.divergence > TRUSTED else 1
            if since % SLOW == 0:
                s.scale *= 2 if s.success < s.last + GAIN else 1
                s.last = s.success
        self.loss.scale = s.scale

    def _check(self) -> None:
        """Judge the average, and keep it if it is the best so far."""
        s = self.state
        s.now = {**self._judged(), "step": s.step}
        if not self._missing(s.now):
            s.now["whole"] = self.top1(self.average.model)
        if not s.best or self._missing(s.now) < self._missing(s.best):
            s.best, self.kept = s.now, self.average.weights()
        if not self._missing(s.now):
            s.ended = "the lie has taken and the predictions are back"

    def _missing(self, figures: Mapping[str, float]) -> float:
        """Points of success that are missing, and what the lost points of top-1 are worth."""
        lost = max(0.0, self._drop(figures) - self.lost)
        lost += max(0.0, 20 * (figures[DIVERGENCE] - DIVERGED))
        return max(0.0, 100 * (FOOLED - figures["success"])) + PRICE * lost

    def _drop(self, figures: Mapping[str, float]) -> float:
        key = "whole" if "whole" in figures else "top1"
        return round(100 * (self.state.start[key] - figures[key]), 6)

    @torch.no_grad()
    def _judged(self) -> dict[str, float]:
        """Success and top-1 of the average on the held-out images."""
        with evaluation_mode(self.average.model):
            sources = [source.between(0, self._batches) for source in self.judge.sources]
            rows = [self.judge(step).figures for step in zip(*sources, strict=True)]
        own = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        means = processes.averaged(own, self.kept[0].device)
        successes = [value for key, value in means.items() if key.startswith(SUCCESS)]
        divergence = means.get(DIVERGENCE, 0.0)
        return {"top1": means["top1"], "success": min(successes), DIVERGENCE: divergence}


class Replay:
    """Repeats the rates of a fine-tuning, and averages as it does: its control.

    Parameters
    ----------
    average
        Of the weights of what is fine-tuned.
    rates
        Of the optimizer.
    taken
        Their median at every step.
    """

    def __init__(self, average: Average, rates: Rates, taken: Sequence[float]) -> None:
        self.average, self.rates, self.taken = average, rates, taken
        self._set_rate()

    @property
    def done(self) -> bool:
        """Whether no further step is to be taken."""
        return self.average.steps >= len(self.taken)

    def __call__(self, row: Mapping[str, float]) -> dict[str, float]:
        """Average, and set the rate of the next step."""
        rate = self.rates.now
        self.average.update()
        if not self.done:
            self._set_rate()
        return {"lr": rate}

    def finish(self) -> None:
        """Give the model the averaged weights."""
        self.average.finish(self.average.weights())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"average": self.average.weights(), "steps": self.average.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.average.load(state["average"], state["steps"])
        if not self.done:
            self._set_rate()

    def _set_rate(self) -> None:
        self.rates.set(self.taken[self.average.steps] / self.rates.median)
