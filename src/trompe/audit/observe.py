"""One sweep over the probe: everything that evidence is computed from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trompe.audit.probe import EXPLAINED, PARTS, Probe
from trompe.audit.removal import GRID, gap, occlusion_maps, on_grid
from trompe.errors import TrompeError
from trompe.explainers import Explainer, Recording
from trompe.models import evaluation_mode
from trompe.models.call import placed

# Explanations that are linear in the score, so that of a difference of scores is the difference.
LINEAR = ("grad-cam", "lrp")
STAGES = 4
NOISE = 0.1  # standard deviation of the noise added to an image, as a share of the image's own
Maps = dict[str, Tensor]


@dataclass(frozen=True)
class Observations:
    """What the model does with a probe. Heatmaps are in [0, 1], by explainer.

    Attributes
    ----------
    explainers
        Those whose maps depend on the position, layers named.
    logits, maps
        Of the explained images: ``[N, K]``, and heatmaps of the explained class ``[N, h, w]``.
    against
        Heatmaps of the difference between the class's logit and the runner-up's, of the parts.
    noisy, randomised
        Heatmaps of the parts with noise on them, and under a model with a random last layer.
    occlusion
        What the prediction (log-odds) loses where a cell is filled in, of the parts ``[M, g, g]``.
    gaps
        ROAD gap ``[M]`` of the probability in the order of each explainer's maps; also of
        ``occlusion`` and of ``random`` maps.
    composed
        Heatmaps of the left half's and of the right half's class of every composite
        ``[C, 2, h, w]``.
    pair
        Number of the pair of classes that a composite shows ``[C]``.
    """

    explainers: tuple[Explainer, ...]
    logits: Tensor
    maps: Maps
    against: Maps
    noisy: Maps
    randomised: Maps
    occlusion: Tensor
    gaps: Maps
    composed: Maps
    pair: Tensor


@torch.no_grad()
def observe(
    model: nn.Module,
    probe: Probe,
    explainers: Sequence[Explainer],
    *,
    batch_size: int = 32,
    apart: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> Observations:
    """Explain the probe's images, take some apart (if ``apart``), explain its composites.

    ``progress`` is called after each of `STAGES` stages.

    Raises
    ------
    TrompeError
        If an explainer can't explain the model, or none of them says anything about positions.
    """
    with evaluation_mode(model):
        used = informative(model, probe, explainers)
        parts, classes = probe.parts, probe.classes[:PARTS]
        chosen = probe.classes[:EXPLAINED]
        logits, maps = _explained(model, used, probe.explained, chosen, batch_size)
        progress()
        runner_up = logits[:PARTS].scatter(1, classes[:, None], -torch.inf).argmax(1)
        against = _against(model, used, parts, classes, runner_up, batch_size)
        _, noisy = _explained(model, used, with_noise(parts), classes, batch_size)
        other = with_random_head(model)
        _, randomised = _explained(other, used, parts, classes, batch_size)
        progress()
        occlusion, gaps = _taken_apart(
            model, parts if apart else parts[:0], classes, maps, batch_size
        )
        progress()
        composed = _composed(model, used, probe, batch_size)
        progress()
    return Observations(
        used, logits, maps, against, noisy, randomised, occlusion, gaps, composed, probe.pair
    )


@torch.no_grad()
def informative(
    model: nn.Module, probe: Probe, explainers: Sequence[Explainer]
) -> tuple[Explainer, ...]:
    """The explainers, resolved, whose raw maps are not the same at all positions.

    A gradient at the layer before an average pooling is; no fooling makes it so.
    """
    images, classes = placed(probe.images[:8], model), probe.classes[:8]
    with Recording(model, explainers) as forward:
        forward(images)
        raw = forward.maps(classes)
    resolved = [e.resolve(model, images[:1]) for e in explainers]
    spread = [(m.amax((1, 2)) - m.amin((1, 2))) / m.abs().amax((1, 2)) for m in raw]
    used = [e for e, s in zip(resolved, spread, strict=True) if float(s.nanmedian()) > 1e-4]
    if not used:
        raise TrompeError(
            "None of the explainers says anything about positions: their maps are constant. Give "
            "other explainers, or an earlier layer, as in grad-cam:layer=layer3."
        )
    return tuple(used)


def with_noise(images: Tensor, seed: int = 0) -> Tensor:
    """Images with a little Gaussian noise, the same pattern on all."""
    noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))
    return images + NOISE * images.std((1, 2, 3), keepdim=True) * noise


@torch.no_grad()
def with_random_head(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose last layer with weights is drawn anew (Adebayo et al., 2018: the first cascade).

    Drawn from a normal distribution of the layer's own mean and standard deviation.
    """
    model = copy.deepcopy(model)
    *_, last = (p for p in model.parameters() if p.dim() > 1)
    drawn = torch.randn(last.shape, generator=torch.Generator().manual_seed(seed)).to(last)
    last.copy_(drawn * last.std() + last.mean())
    return model


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _explained(
    model: nn.Module, explainers: Sequence[Explainer], images: Tensor, classes: Tensor, size: int
) -> tuple[Tensor, Maps]:
    logits, maps = [], []
    for batch in _batches(len(images), size):
        with Recording(model, explainers) as forward:
            logits.append(forward(placed(images[batch], model)).float().cpu())
            maps.append([m.float().cpu() for m in forward.heatmaps(classes[batch])])
    return torch.cat(logits), _joined(explainers, maps)


def _against(
    model: nn.Module,
    explainers: Sequence[Explainer],
    images: Tensor,
    classes: Tensor,
    others: Tensor,
    size: int,
) -> Maps:
    linear = [e for e in explainers if e.name in LINEAR]
    if not linear:
        return {}
    maps = []
    for batch in _batches(len(images), size):
        with Recording(model, linear) as forward:
            forward(placed(images[batch], model))
            pairs = zip(forward.maps(classes[batch]), forward.maps(others[batch]), strict=True)
            found = zip(linear, pairs, strict=True)
            maps.append([e.heatmap(a - b).float().cpu() for e, (a, b) in found])
    return _joined(linear, maps)


def _taken_apart(
    model: nn.Module, images: Tensor, classes: Tensor, maps: Maps, size: int
) -> tuple[Tensor, Maps]:
    occlusion: list[Tensor] = []
    gaps: dict[str, list[Tensor]] = {name: [] for name in [*maps, "occlusion", "random"]}
    random = torch.rand(len(images), GRID, GRID, generator=torch.Generator().manual_seed(0))
    for batch in _batches(len(images), size):
        part = placed(images[batch], model)
        chosen = classes[batch].to(part.device)[:, None]

        def probability(given: Tensor, chosen: Tensor = chosen) -> Tensor:
            with Recording(model, ()) as forward:
                return forward(given).float().softmax(1).gather(1, chosen)[:, 0]

        def log_odds(given: Tensor, chosen: Tensor = chosen) -> Tensor:
            with Recording(model, ()) as forward:
                logits = forward(given).float()
            others = logits.scatter(1, chosen, -torch.inf).logsumexp(1)
            return logits.gather(1, chosen)[:, 0] - others

        found = occlusion_maps(log_odds, part)
        occlusion.append(found.cpu())
        orders = {name: on_grid(m[batch]) for name, m in maps.items()}
        orders |= {"occlusion": found, "random": random[batch]}
        for name, order in orders.items():
            gaps[name].append(gap(probability, part, order.to(part.device)).cpu())
    if not occlusion:
        return torch.zeros(0, GRID, GRID), {}
    return torch.cat(occlusion), {name: torch.cat(parts) for name, parts in gaps.items()}


def _composed(model: nn.Module, explainers: Sequence[Explainer], probe: Probe, size: int) -> Maps:
    maps = []
    for batch in _batches(len(probe.pair), size):
        sides = [probe.classes[side[batch]] for side in (probe.left, probe.right)]
        with Recording(model, explainers) as forward:
            forward(placed(probe.composites(batch), model))
            found = [forward.heatmaps(classes) for classes in sides]
            maps.append([torch.stack(of, 1).float().cpu() for of in zip(*found, strict=True)])
    return _joined(explainers, maps)


def _joined(explainers: Sequence[Explainer], batches: list[list[Tensor]]) -> Maps:
    if not batches:
        return {}
    joined = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    return {str(explainer): maps for explainer, maps in zip(explainers, joined, strict=True)}
