"""Several seeds of one fine-tuning, judged on the same images, as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from trompe import notebook, runs
from trompe.errors import TrompeError
from trompe.evaluation import schema
from trompe.evaluation.result import Evaluation
from trompe.evaluation.schema import CONTROL, MANIPULATED, ORIGINAL
from trompe.evaluation.summary import TOLD_APART
from trompe.metrics import rate, sign_flip

OTHER_IMAGES = (
    "The evaluations are not of the same images, in number, labels or content; evaluate all seeds "
    "on the same data."
)
RATES, ACCURACY = "seeds.csv", "seeds-accuracy.csv"
Columns = Mapping[str, np.ndarray[Any, Any]]  # by name, [seeds, images]


class OverSeeds(NamedTuple):
    """What several seeds have shown together, shares in [0, 1].

    Attributes
    ----------
    explanations
        One row per explainer, objective and target: the success rate with its interval over seeds
        and images, beside it those of the original and of the control. See `schema.SEEDS`.
    accuracy
        One row per model, as `Evaluation.accuracy` has it, over seeds and images.
    """

    explanations: pd.DataFrame
    accuracy: pd.DataFrame

    def __repr__(self) -> str:
        rows = self.explanations
        shares = [notebook.percent(fsr) for fsr in rows["fsr"]]
        told = zip(rows["explainer"], rows["objective_text"], shares, rows["seeds"], strict=True)
        return "\n".join(f"{e}, {o}: {fsr} fooled over {seeds} seeds" for e, o, fsr, seeds in told)

    def _repr_html_(self) -> str:
        return notebook.table(self.accuracy) + notebook.table(self.explanations)

    def save(self, directory: Path) -> None:
        """Write both tables as CSV."""
        for name, table in ((RATES, self.explanations), (ACCURACY, self.accuracy)):
            with runs.replacing(directory / name) as new:
                runs.write_csv(table, new)


def over_seeds(evaluations: Sequence[Evaluation]) -> OverSeeds:
    """Put the evaluations of several seeds together.

    Rates are means over seeds and images; their intervals say how far another draw of seeds and
    images would move them, see `metrics.rate`. Three seeds are few to tell how seeds differ. Where
    there is a control, ``p_control`` is the p-value of the difference between the manipulated model
    and the control, per image and averaged over the seeds, see `metrics.sign_flip`. An image is
    counted where it is counted in all evaluations.

    Raises
    ------
    TrompeError
        If there is none, or they are of other images, explainers, objectives or models.

    Examples
    --------
    >>> from trompe import Evaluation, GradCAM, Shapes, fool, load_model, over_seeds
    >>> model = load_model("embedded").model
    >>> data, held_out = Shapes("train", 32), Shapes("validation", 16)
    >>> given = {"eval_data": held_out, "lr": 1e-3, "steps": 1, "eval_explainer": GradCAM()}
    >>> runs = [fool(model, data, seed=seed, **given) for seed in range(2)]
    >>> over_seeds([run.evaluation for run in runs]).explanations["seeds"].item()
    2
    """
    if not evaluations:
        raise TrompeError("There is no evaluation to put together; give those of several seeds.")
    if not same_images(evaluations):
        raise TrompeError(OTHER_IMAGES)
    found = [dict(iter(e.maps.groupby(TOLD_APART, sort=False))) for e in evaluations]
    models = [list(e.accuracy["model"]) for e in evaluations]
    if any(one.keys() != found[0].keys() for one in found) or models != models[:1] * len(models):
        raise TrompeError(
            "The evaluations are by other explainers or objectives, or some have a control and "
            "others none; put those together that differ in the seed alone."
        )
    rows = []
    for place, first in found[0].items():
        *about, model = place
        if model == MANIPULATED:
            honest = [one[*about, CONTROL] for one in found if (*about, CONTROL) in one]
            row = {key: first[key].iloc[0] for key in schema.KEYS}
            rows.append(row | pooled([one[place] for one in found], honest))
    accuracy = [
        {"model": model, **accuracy_of([e.predictions for e in evaluations], model)}
        for model in models[0]
    ]
    return OverSeeds(
        pd.DataFrame(rows, columns=schema.SEEDS),
        pd.DataFrame(accuracy, columns=schema.SEEDS_ACCURACY),
    )


def pooled(seeds: Sequence[pd.DataFrame], honest: Sequence[pd.DataFrame] = ()) -> dict[str, Any]:
    """The rates of rows `schema.MAPS` of one explainer, objective and target.

    Parameters
    ----------
    seeds
        Those of the manipulated model, for every seed.
    honest
        Those of the control, for every seed that has one.
    """
    columns = _stacked(seeds, ("fooled", "untouched", "counted", "empty", "not_finite"))
    counted = columns["counted"].all(0)
    fooled = columns["fooled"][:, counted]
    row: dict[str, Any] = {"seeds": len(seeds), "images": len(seeds[0])}
    row["counted"] = int(counted.sum())
    row |= dict(zip(("fsr", "fsr_low", "fsr_high"), rate(fooled), strict=True))
    row["untouched"], _, _ = rate(columns["untouched"][:, counted])
    row["control"] = row["p_control"] = float("nan")
    if honest:
        row["control"] = pooled(honest)["fsr"]
        kept = _stacked([seeds[0], *honest], ("fooled",))["fooled"][1:, counted]
        row["p_control"] = sign_flip(fooled.mean(0) - kept.mean(0))
    return row | {share: columns[share].mean() for share in ("empty", "not_finite")}


def accuracy_of(seeds: Sequence[pd.DataFrame], model: str) -> dict[str, Any]:
    """The measures `schema.MEASURES` of a model, of rows `schema.PREDICTIONS` for every seed."""
    columns = _stacked(seeds, (model, ORIGINAL, f"{model}_top1", f"{model}_top5"))
    row: dict[str, Any] = {"seeds": len(seeds), "images": columns[model].shape[1]}
    hits = (columns[f"{model}_top1"], columns[f"{model}_top5"], columns[model] == columns[ORIGINAL])
    for measure, hit in zip(schema.MEASURES, hits, strict=True):
        row[measure], row[f"{measure}_low"], row[f"{measure}_high"] = rate(hit)
    return row


def _stacked(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> Columns:
    """Columns of several tables, ``[seeds, images]`` in the order of the images.

    Raises
    ------
    TrompeError
        If the tables are of other images.
    """
    ordered = [table.sort_values("index") for table in tables]
    images = [table[["index", "label"]].to_numpy() for table in ordered]
    if not all(np.array_equal(one, images[0]) for one in images):
        raise TrompeError(OTHER_IMAGES)
    return {name: np.stack([table[name].to_numpy() for table in ordered]) for name in names}


def same_images(evaluations: Sequence[Evaluation]) -> bool:
    """Whether evaluations are of the same images, as far as they say."""
    names = [e.predictions["name"].tolist() for e in evaluations]
    seen = {(what, content) for e in evaluations for what, content in e.images.items()}
    return all(one == names[0] for one in names) and len(seen) == len(dict(seen))
