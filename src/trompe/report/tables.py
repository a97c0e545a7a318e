"""The rows of the report's tables."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from trompe.colour import rate_colours
from trompe.evaluation.schema import CONTROL, MANIPULATED, MODELS, ORIGINAL
from trompe.report import words
from trompe.report.run import Run


@dataclass(frozen=True)
class Comparison:
    """A row of the table of success rates: the manipulated model beside the control."""

    explainer: str
    attacked: bool
    manipulated: Mapping[str, Any]
    control: Mapping[str, Any] | None


@dataclass(frozen=True)
class Block:
    """The rows of one objective and target."""

    objective: str
    measure: str
    target: str | None
    interval: tuple[float, float]
    images: int
    rows: list[Comparison]

    @property
    def name(self) -> str:
        """The objective and, where it is not each image's own label, the class."""
        return self.objective + (f" for {self.target}" if self.target else "")


@dataclass(frozen=True)
class Cell:
    """A rate in a matrix; ``share`` is NaN where nothing was measured, ``colours`` then ``None``.

    ``marked`` cells were attacked, ``below`` stands in small figures under the rate, a line each,
    ``absent`` in place of a missing one.
    """

    share: float
    column: str
    note: str = ""
    marked: bool = False
    below: Sequence[str] = ()
    link: str = ""
    absent: str = "none counted"

    @property
    def colours(self) -> tuple[str, str] | None:
        """Ground and ink."""
        return None if math.isnan(self.share) else rate_colours(self.share)


@dataclass(frozen=True)
class Matrix:
    """Rates as coloured cells: a line per attack, a column per explainer.

    ``groups`` are headings above the columns, each with the number of its columns; a line is its
    name, a remark and its cells (``None`` for an empty place); ``head`` stands above the names.
    """

    title: str
    columns: list[str]
    lines: list[tuple[str, str, list[Cell | None]]]
    groups: Sequence[tuple[str, int]] = ()
    head: str = "Attack"


@dataclass(frozen=True)
class ClassRow:
    """One class: its images, top-1 by model, and how often its explanations are fooled."""

    name: str
    images: int
    top1: list[float]
    fooled: list[float]


@dataclass(frozen=True)
class ClassTable:
    """The classes, those first whose top-1 fell most."""

    models: list[str]
    lies: list[str]
    rows: list[ClassRow]


def models(run: Run) -> set[str]:
    """Name the models that the evaluation compared."""
    compared = [table["model"] for table in (run.accuracy, run.explanations) if table is not None]
    return set(itertools.chain(*compared))


def blocks(run: Run) -> list[Block]:
    """Make a block of every objective and target, attacked explainers first."""
    if run.explanations is None:
        return []
    table = run.explanations.sort_values("attacked", ascending=False, kind="stable")
    blocks = []
    for (objective, target), rows in table.groupby(["objective_id", "target"], sort=False):
        told = run.legend[str(objective)]
        interval = (float(rows["interval_low"].iloc[0]), float(rows["interval_high"].iloc[0]))
        comparisons = [
            _comparison(run.label(str(explainer)), pair.to_dict("records"))
            for explainer, pair in rows.groupby("explainer_id", sort=False)
            if MANIPULATED in set(pair["model"])
        ]
        images = int(rows["images"].max())
        block = Block(
            told["label"],
            told["measure"],
            run.target_name(str(target)),
            interval,
            images,
            comparisons,
        )
        blocks.append(block)
    return blocks


def _comparison(explainer: str, pair: list[dict[Any, Any]]) -> Comparison:
    by_model = {row["model"]: row for row in pair}
    manipulated = by_model[MANIPULATED]
    return Comparison(
        explainer,
        bool(manipulated["attacked"]),
        manipulated,
        by_model.get(CONTROL),
    )


def transfer(blocks: Sequence[Block]) -> Matrix | None:
    """Lay the success rates out as a matrix: which explainer each lie reaches.

    ``None`` where only one rate was measured.
    """
    columns = list(dict.fromkeys(row.explainer for block in blocks for row in block.rows))
    if sum(len(block.rows) for block in blocks) < 2:
        return None
    lines: list[tuple[str, str, list[Cell | None]]] = []
    for block in blocks:
        rows = {row.explainer: row for row in block.rows}
        attacked = words.joined([row.explainer for row in block.rows if row.attacked])
        through = f"through {attacked}" if attacked else ""
        lied = {e: _cell(row.manipulated, e, row.attacked) for e, row in rows.items()}
        lines.append((block.name, through, [*map(lied.get, columns)]))
        honest = {e: _cell(row.control, e) for e, row in rows.items() if row.control}
        if honest:
            lines.append((block.name, "control", [*map(honest.get, columns)]))
        own = {e: Cell(float(row.manipulated["untouched"]), e) for e, row in rows.items()}
        lines.append((block.name, "untouched", [*map(own.get, columns)]))
    return Matrix("Fooling success rate in %", columns, lines)


def _cell(row: Mapping[str, Any], column: str, marked: bool = False) -> Cell:
    interval = words.span(row["fsr_low"], row["fsr_high"])
    note = f"95 % interval {interval}; {words.percent(row['empty'])} of the maps are empty"
    return Cell(float(row["fsr"]), column, note, marked)


def objectives(blocks: list[Block]) -> list[tuple[str, str, tuple[float, float]]]:
    """Say once for each objective what its test loss is and when it counts as fooled."""
    return list(dict.fromkeys((block.objective, block.measure, block.interval) for block in blocks))


def accuracy(run: Run) -> list[dict[str, Any]]:
    """List the models' accuracies, each with its change from the original's top-1."""
    if run.accuracy is None:
        return []
    rows = {row["model"]: row for row in run.accuracy.to_dict("records")}
    original = rows[ORIGINAL]["top1"]
    return [
        {str(key): value for key, value in rows[model].items()}
        | {"change": math.nan if model == ORIGINAL else rows[model]["top1"] - original}
        for model in MODELS
        if model in rows
    ]


def classes(run: Run) -> ClassTable | None:
    """Break accuracy and success down by the images' class; ``None`` where it is not known."""
    predictions = run.predictions
    if predictions is None or predictions["label"].nunique() < 2:
        return None
    measured = [model for model in MODELS if f"{model}_top1" in predictions]
    name = "class" if "class" in predictions else "label"
    lies = _lies_by_class(run)
    rows = [
        ClassRow(
            str(images[name].iloc[0]),
            len(images),
            [float(images[f"{model}_top1"].mean()) for model in measured],
            [float(rates.get(label, math.nan)) for rates in lies.values()],
        )
        for label, images in predictions.groupby("label")
    ]
    rows.sort(key=lambda row: row.top1[-1] - row.top1[0])
    return ClassTable(measured, list(lies), rows)


def _lies_by_class(run: Run) -> dict[str, "pd.Series[float]"]:
    """Success rates by label, for every attacked explainer whose images have labels."""
    if run.per_image is None:
        return {}
    table = run.per_image[run.per_image["counted"]]
    lied = table["attacked"] & (table["model"] == MANIPULATED) & (table["target"] == "label")
    groups = table[lied].groupby(["explainer_id", "objective_id"], sort=False)
    found = {(str(e), str(o)): rows for (e, o), rows in groups}
    several = len({objective for _, objective in found}) > 1
    return {
        run.label(explainer) + (f", {run.label(objective)}" if several else ""): (
            rows.groupby("label")["fooled"].mean()
        )
        for (explainer, objective), rows in found.items()
    }
