"""Evidence against a reference: what changed from the model before to the suspect.

Measures take what was observed of the suspect and of the reference on the same probe.
"""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from trompe.audit.evidence import KINDS, Kind
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


DRIFTS = (
    Kind(
        "rank correlation",
        "Do the maps rank positions as the reference's do?",
        "low",
        rank_correlation,
    ),
    Kind(
        "top-k intersection",
        "Are the hottest positions those of the reference?",
        "low",
        top_intersection,
    ),
    Kind("centre shift", "Is the heat where it was?", "high", centre_shift),
    Kind(
        "disproportion",
        "Did the maps change no more than the predictions did?",
        "high",
        disproportion,
    ),
    Kind(
        "pair correlation",
        "Are the maps of two classes side by side the reference's, for every pair?",
        "low",
        pair_correlation,
        "pair",
        "min",
    ),
    *(
        Kind(
            f"{kind.name}, change",
            f"As for the reference: {kind.question[0].lower()}{kind.question[1:]}",
            kind.suspicious,
            partial(change, kind),
            kind.over,
            kind.score,
        )
        for kind in KINDS
        if kind.name not in ("faithfulness", "occlusion")  # the reference is not taken apart
    ),
)
"""All kinds of evidence against a reference, in the order of the report."""
