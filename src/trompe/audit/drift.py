"""Evidence against another model: what changed from it to the suspect.

The other is the model before, or, where there is none, a copy of the suspect that was trained a
little more (`retrained`): a lie falls back there, an honest explanation has nowhere to fall.
Measures take what was observed of both on the same probe.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from trompe.audit.evidence import KINDS, Kind, occlusion
from trompe.audit.observe import Maps, Observations
from trompe.audit.removal import on_grid
from trompe.maps import center_of_mass, spearman, top_fraction

TOP = 0.1  # share of positions that the top-k intersection looks at


def rank_correlation(seen: Observations, before: Observations) -> Maps:
    """Rank correlation of the map with the reference's."""
    return {
        name: spearman(on_grid(seen.maps[name]), on_grid(before.maps[name])).float()
        for name in _common(seen, before)
    }


def top_intersection(seen: Observations, before: Observations) -> Maps:
    """Share of the reference's hottest tenth of positions that is in the suspect's."""
    found = {}
    for name in _common(seen, before):
        now, then = (top_fraction(o.maps[name], TOP).float() for o in (seen, before))
        found[name] = (now * then).sum((1, 2)) / then.sum((1, 2))
    return found


def centre_shift(seen: Observations, before: Observations) -> Maps:
    """Shift of the heat's centre of mass as a share of the frame's largest."""
    found = {}
    for name in _common(seen, before):
        maps = seen.maps[name]
        sides = maps.new_tensor([max(1, side - 1) for side in maps.shape[1:]])
        shift = (center_of_mass(maps) - center_of_mass(before.maps[name])) / sides
        found[name] = shift.square().mean(1).sqrt()
    return found


def pair_correlation(seen: Observations, before: Observations) -> Maps:
    """Rank correlation with the reference's maps of two classes side by side, by pair."""
    found = {}
    for name in _common(seen, before):
        if name in seen.composed:
            now, then = (on_grid(o.composed[name].flatten(0, 1)) for o in (seen, before))
            each = spearman(now, then).view(-1, 2).mean(1).float()
            found[name] = torch.stack(
                [each[seen.pair == n].mean() for n in torch.unique(seen.pair)]
            )
    return found


def disproportion(seen: Observations, before: Observations) -> Maps:
    """How much more the maps changed than the predictions: correlation of logits less of maps."""
    kept = _correlation(seen.logits, before.logits)
    return {name: kept - maps for name, maps in rank_correlation(seen, before).items()}


def occlusion_change(seen: Observations, before: Observations) -> Maps:
    """How much better the map agrees with the suspect's occlusion map than the other's map does."""
    now, then = occlusion(seen), occlusion(replace(before, occlusion=seen.occlusion))
    return {name: now[name] - then[name] for name in now if name in then}


def change(kind: Kind, seen: Observations, before: Observations) -> Maps:
    """What a kind of evidence says of the suspect less what it says of the reference."""
    now, then = kind.measure(seen), kind.measure(before)
    return {name: now[name] - then[name] for name in now if name in then}


def prediction_agreement(seen: Observations, before: Observations) -> float:
    """Share of images of which both models predict the same class."""
    return float((seen.logits.argmax(1) == before.logits.argmax(1)).float().mean())


def weight_drift(model: nn.Module, reference: nn.Module | None) -> pd.DataFrame:
    """Relative change of every tensor of weights and BatchNorm statistics: ‖w - w₀‖ / ‖w₀‖.

    Columns ``layer``, ``what`` (``weight``, ``bias``, ``running_mean`` ...) and ``change``; no
    rows without a reference or if the two have different layers.
    """
    now, then = model.state_dict(), reference.state_dict() if reference is not None else {}
    rows = []
    if {k: v.shape for k, v in now.items()} == {k: v.shape for k, v in then.items()}:
        for name, tensor in now.items():
            if tensor.is_floating_point():
                old = then[name].to(tensor)
                moved = float((tensor - old).norm() / old.norm().clamp_min(1e-12))
                layer, _, what = name.rpartition(".")
                rows.append({"layer": layer, "what": what, "change": moved})
    return pd.DataFrame(rows, columns=["layer", "what", "change"]).astype({"change": float})


def _common(seen: Observations, before: Observations) -> list[str]:
    return [name for name in seen.maps if name in before.maps]


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    a, b = (t - t.mean(1, keepdim=True) for t in (first, second))
    return torch.cosine_similarity(a, b, 1, 1e-12)


def drifts(other: str) -> tuple[Kind, ...]:
    """All kinds of evidence against another model, in the order of the report."""
    return (
        Kind(
            "rank correlation",
            f"Do the maps rank positions as the {other}'s do?",
            "low",
            rank_correlation,
        ),
        Kind(
            "top-k intersection",
            f"Are the hottest positions those of the {other}?",
            "low",
            top_intersection,
        ),
        Kind("centre shift", f"Is the heat where the {other}'s is?", "high", centre_shift),
        Kind(
            "disproportion",
            f"Do the maps differ from the {other}'s no more than the predictions do?",
            "high",
            disproportion,
        ),
        Kind(
            "pair correlation",
            f"Are the maps of two classes side by side the {other}'s, for every pair?",
            "low",
            pair_correlation,
            "pair",
            "min",
        ),
        *(
            Kind(
                f"{kind.name}, change",
                f"As for the {other}: {kind.question[0].lower()}{kind.question[1:]}",
                kind.suspicious,
                occlusion_change if kind.name == "occlusion" else partial(change, kind),
                kind.over,
                kind.score,
            )
            for kind in KINDS
            if kind.name != "faithfulness"  # the other model is not taken apart
        ),
    )


AGAINST_COPY = drifts("retrained copy")
AGAINST_REFERENCE = drifts("reference")
