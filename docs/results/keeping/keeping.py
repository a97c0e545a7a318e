"""What keeps the knowledge: one lie learnt in nine ways, the same number of steps each.

    OMP_NUM_THREADS=1 python docs/results/keeping/keeping.py NAME SETTINGS [--steps N] [--out FILE]

SETTINGS is YAML, as `trompe fool` takes it: `{model: embedded-vgg, data: "shapes:train"}`. Every
way differs from the first in one thing. All are judged on held-out training images; rows of the
same name in FILE are replaced.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from trompe import Recording
from trompe.data.images import in_turn
from trompe.data.subset import parted
from trompe.models import copied
from trompe.models.call import logits_of, placed
from trompe.objectives import Objective
from trompe.tuning.course import Course
from trompe.tuning.job import FoolJob
from trompe.tuning.loss import StepLoss
from trompe.tuning.pilot import WARM_UP, Average, rates_for

STEPS, JUDGED, FALL = (
    300,
    500,
    0.5,
)  # steps; held-out images; share of the steps in which the rate falls


@dataclass(frozen=True)
class Way:
    """How the lie is learnt."""

    moves: str = "stage"  # or all, normalisation
    keep: str = "predictions"  # or labels
    margin: bool = True
    averaged: bool = True
    rate: float = 1.0  # times the one that is found
    other_images: bool = False  # predictions kept on crops mixed with one another too
    features: bool = False  # the original's input to the last layer kept too
    projected: bool = False  # the lie's gradient without what speaks against the classification's


WAYS = {
    "as found": Way(),
    "all parameters move": Way(moves="all"),
    "only normalisation moves": Way(moves="normalisation"),
    "labels kept": Way(keep="labels"),
    "no margin": Way(margin=False),
    "last weights": Way(averaged=False),
    "four times the rate": Way(rate=4),
    "mixtures of images too": Way(other_images=True),
    "features too": Way(features=True),
    "projected gradients": Way(projected=True),
}


def mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of images, each mixed with another."""
    side, shares = images.shape[-1], torch.rand(len(images), 1, 1, 1, generator=generator)
    size = int(side * (0.3 + 0.7 * torch.rand((), generator=generator).item()))
    top, left = torch.randint(side - size + 1, (2,), generator=generator).tolist()
    crops = images[..., top : top + size, left : left + size]
    crops = F.interpolate(crops, (side, images.shape[-2]), mode="bilinear")
    others = images[torch.randperm(len(images), generator=generator)]
    return shares * crops + (1 - shares) * others


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Of predictions from the original's, in nats."""
    return F.kl_div(
        after.log_softmax(1), before.log_softmax(1), log_target=True, reduction="batchmean"
    )


def features(model: nn.Module) -> tuple[list[Tensor], Callable[[], None]]:
    """What the last linear layer is given, call by call."""
    seen: list[Tensor] = []
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    return seen, handle.remove


def tuned(course: Course, way: Way, steps: int) -> nn.Module:
    """The original after the lie was learnt in one way."""
    model = copied(course.original).eval()
    chosen = set(course.moves)
    if way.moves == "all":
        chosen = {name for name, _ in model.named_parameters()}
    if way.moves == "normalisation":
        norms = [n for n, m in model.named_modules() if "Norm" in type(m).__name__]
        chosen = {f"{n}.{kind}" for n in norms for kind in ("weight", "bias")} & chosen
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    moving = [p for p in model.parameters() if p.requires_grad]
    terms = course.terms
    if not way.margin:
        terms = [replace(t, objective=replace(t.objective, margin=None)) for t in terms]
    lies = StepLoss(course.original, model, terms, course.sources, keep=way.keep)
    kept_features, close = features(model)
    rates = rates_for(moving)
    groups = [{"params": [p], "lr": lr} for p, lr in zip(moving, rates, strict=True)]
    optimizer = torch.optim.Adam(groups)
    average = Average(model, copied(course.original))
    generator = torch.Generator().manual_seed(0)
    batches = zip(*(source.between(0, steps) for source in lies.sources), strict=True)
    for step, batch in enumerate(batches):
        share = min(1.0, (step + 1) / WARM_UP, (steps - step) / (FALL * steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * way.rate * share
        optimizer.zero_grad()
        kept_features.clear()
        loss = lies(batch)
        total = loss.total
        images = placed(batch[0][1], model)
        if way.features:
            seen, stop = features(course.original)
            with torch.no_grad():
                course.original(images)
            stop()
            total = total + F.mse_loss(kept_features[0], seen[0]) / seen[0].square().mean()
        if way.other_images:
            others = placed(mixed(batch[0][1], generator), model)
            with torch.no_grad():
                before = logits_of(course.original(others))
            total = total + divergence(before, logits_of(model(others)))
        if way.projected:
            _project(loss.parts["classification"], total, moving)
        else:
            total.backward()
        nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        average.update()
    close()
    if way.averaged:
        average.finish(average.weights())
    return model


def _project(kept: Tensor, total: Tensor, parameters: list[nn.Parameter]) -> None:
    """Yu et al. 2020, "Gradient Surgery": the rest loses what points against ``kept``."""
    own = torch.autograd.grad(kept, parameters, retain_graph=True, allow_unused=True)
    every = torch.autograd.grad(total, parameters, allow_unused=True)
    pairs = [
        (torch.zeros_like(p) if a is None else a, torch.zeros_like(p) if b is None else b)
        for p, a, b in zip(parameters, own, every, strict=True)
    ]
    against = sum(((b - a) * a).sum() for a, b in pairs)
    size = sum(a.square().sum() for a, _ in pairs)
    share = float(min(against / size, torch.tensor(0.0))) if size > 0 else 0.0
    for parameter, (a, b) in zip(parameters, pairs, strict=True):
        parameter.grad = b - share * a


def judged(course: Course, model: nn.Module) -> dict[str, float]:
    """Success, and what is lost, on held-out images."""
    explainers = tuple(dict.fromkeys(t.explainer for t in course.terms))
    rows: list[list[Tensor]] = []
    for _, images, labels in itertools.islice(in_turn(course.held_out, 20), JUDGED // 20):
        told = [_said(network, explainers, images, labels) for network in (course.original, model)]
        (before, old), (after, new) = told
        for term in course.terms:
            objective: Objective = term.objective
            at = explainers.index(term.explainer)
            (loss,) = objective.test_loss((new[at],), (old[at],))
            rows.append(
                [
                    objective.fooled(loss).double(),
                    (after.argmax(1) == labels).double() - (before.argmax(1) == labels).double(),
                    (after.argmax(1) == before.argmax(1)).double(),
                    divergence(before, after).expand(len(labels)).double(),
                ]
            )
    fooled, points, agreement, nats = (
        torch.cat(of).mean().item() for of in zip(*rows, strict=True)
    )
    return {
        "fooled": round(fooled, 4),
        "points": round(100 * points, 2),
        "agreement": round(agreement, 4),
        "divergence": round(nats, 4),
        "images": sum(len(r[0]) for r in rows) // len(course.terms),
    }


@torch.no_grad()
def _said(
    model: nn.Module, explainers: tuple, images: Tensor, labels: Tensor
) -> tuple[Tensor, list[Tensor]]:
    with Recording(model, explainers) as forward:
        logits = forward(placed(images, model)).float()
        return logits, list(forward.heatmaps(labels))


def measured(name: str, settings: dict, steps: int) -> Iterator[dict]:
    """A row for each way."""
    job = FoolJob(**settings, quiet=True, check=False)
    model, data, _ = job.opened()
    model.eval()
    tuned_on, held_out = parted(data, job.seed)
    sample = placed(data[0][0][None], model)
    terms = job.terms(model, sample, data, None)
    course = Course.of(job, model, sample, terms, tuned_on, held_out, None)
    has_norms = any("Norm" in type(module).__name__ for module in model.modules())
    for what, way in WAYS.items():
        if way.moves == "normalisation" and not has_norms:
            continue
        torch.manual_seed(0)
        yield {
            "network": name,
            "way": what,
            **judged(course, tuned(course, way, steps)),
            "steps": steps,
        }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name")
    parser.add_argument("settings")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("keeping.csv"))
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    settings = yaml.safe_load(options.settings)
    for row in measured(options.name, settings, options.steps):
        print(row, flush=True)
        table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
        if len(table):
            table = table[(table["network"] != row["network"]) | (table["way"] != row["way"])]
        pd.concat([table, pd.DataFrame([row])]).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
