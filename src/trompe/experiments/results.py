"""Finished cells as the paper's tables, with the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trompe import runs
from trompe.errors import TrompeError
from trompe.evaluation import Evaluation, schema
from trompe.evaluation.schema import MANIPULATED, ORIGINAL
from trompe.evaluation.seeds import OTHER_IMAGES, accuracy_of, pooled, same_images
from trompe.experiments.grid import SECTIONS, Cell, Grid, paper
from trompe.experiments.runner import is_finished
from trompe.explainers import parse_explainer
from trompe.objectives import parse_objective

NAN = float("nan")
MEASURED: schema.Columns = ("images", "counted", "fsr", "fsr_low", "fsr_high", "untouched")
MEASURED += ("p_control", "empty", "not_finite")
Evaluations = Sequence[Evaluation]


@dataclass(frozen=True)
class Results:
    """What a grid has shown so far, shares in [0, 1]; NaN where a cell is not finished.

    Attributes
    ----------
    rates
        One row per cell, target class and explainer: ``fsr`` with its 95 % interval over seeds and
        images, that of the original judged against itself and of the control, the p-value of the
        difference from the control, shares of maps that are empty or not finite, the paper's.
    accuracy
        One row per cell: top-1 with its interval and top-5 of the manipulated model, top-1 of the
        original and of the control, the paper's top-1 and its drop.
    """

    rates: pd.DataFrame
    accuracy: pd.DataFrame

    def save(self, directory: Path) -> None:
        """Write both tables as CSV and parquet."""
        with runs.replacing(directory) as new:
            new.mkdir()
            for name, table in (("rates", self.rates), ("accuracy", self.accuracy)):
                runs.write_csv(table, new / f"{name}.csv")
                table.to_parquet(new / f"{name}.parquet", index=False)


Known = dict[tuple[str, ...], tuple[list[dict[str, Any]], dict[str, Any]]]


def collect(grid: Grid, root: Path, known: Known | None = None) -> Results:
    """Read the finished cells of ``grid`` under ``root``; seeds of one cell are one row.

    Parameters
    ----------
    known
        What earlier calls read, by the cells; they are not read again.

    Raises
    ------
    TrompeError
        If an evaluation can't be read, or seeds of one cell were not judged on the same images.
    """
    rows: dict[tuple[str, str], list[Cell]] = {}
    controls: dict[str, list[Cell]] = {}
    for cell in grid.cells:
        if cell.section in SECTIONS:
            rows.setdefault((cell.row, cell.objective), []).append(cell)
        elif cell.section == "control":
            controls.setdefault(cell.network, []).append(cell)
    rates, accuracy = [], []
    known = {} if known is None else known
    for seeds in rows.values():
        done = [cell for cell in seeds if is_finished(cell, root)]
        kept = [c for c in controls.get(seeds[0].network, []) if is_finished(c, root)]
        names = (seeds[0].row, *(cell.folder for cell in (*done, *kept)))
        if names not in known:
            known[names] = _read(seeds[0], _evaluations(done, root), _evaluations(kept, root))
        place = _place(seeds[0], len(done), len(seeds))
        rates += [place | row for row in known[names][0]]
        accuracy.append(place | known[names][1])
    return Results(
        pd.DataFrame(rates, columns=schema.GRID_RATES),
        pd.DataFrame(accuracy, columns=schema.GRID_ACCURACY),
    )


def _read(
    cell: Cell, found: Evaluations, honest: Evaluations
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if not same_images(found):
        raise TrompeError(f"{cell.row}: {OTHER_IMAGES}")
    return [*_rates(cell, found, honest)], _accuracy(cell, found, honest)


def _rates(cell: Cell, found: Evaluations, honest: Evaluations) -> Iterator[dict[str, Any]]:
    published = paper()
    judges = [parse_explainer(spec).family for spec in cell.settings["eval_explainer"]]
    paired = same_images([*found, *honest])
    for target in ("c1", "c2") if cell.section == "active" else ("label",):
        line = published["active"][target] if target != "label" else {}
        line = line or published["passive"].get(cell.objective, {})
        figures = line.get(cell.explainer, {}).get(cell.network, [])
        printed = dict(zip(published["explainers"][cell.section], figures, strict=False))
        for judge in judges:
            ours, kept = (_maps(e, _objective(cell), target, judge) for e in (found, honest))
            row = pooled(ours, kept if paired else ()) if ours else {}
            control = pooled(kept)["fsr"] if kept else NAN
            yield {
                "target": target,
                "family": judge,
                "attacked": judge == cell.explainer,
                **{key: row.get(key, NAN) for key in MEASURED},
                "control": control,
                "paper_fsr": _share(printed.get(judge)),
            }


def _accuracy(cell: Cell, found: Evaluations, honest: Evaluations) -> dict[str, Any]:
    published = paper()
    name = "active" if cell.section == "active" else cell.objective
    printed = published["accuracy"].get(name, {}).get(cell.explainer, {}).get(cell.network)
    before = published["baseline"].get(cell.network)
    measured = _of(found, MANIPULATED)
    row = {key: measured.get(key, NAN) for key in ("top1", "top1_low", "top1_high", "top5")}
    original = _of(found, ORIGINAL).get("top1", NAN)
    control = _of(honest, MANIPULATED).get("top1", NAN)
    return {
        **row,
        "original_top1": original,
        "control_top1": control,
        "drop": original - row["top1"],
        "drop_from_control": control - row["top1"],
        "paper_top1": _share(printed and printed[0]),
        "paper_drop": _share(printed and before and round(before[0] - printed[0], 6)),
    }


def _place(cell: Cell, finished: int, seeds: int) -> dict[str, Any]:
    return {
        "cell": cell.row,
        "section": cell.section,
        "network": cell.title,
        "objective": _objective(cell),
        "through": cell.explainer,
        "finished": finished == seeds,
        "seeds": finished,
    }


def _objective(cell: Cell) -> str:
    return parse_objective(cell.objective).name


def _evaluations(cells: Sequence[Cell], root: Path) -> Evaluations:
    for cell in cells:
        runs.check_intact(root / cell.folder, root / cell.folder / "evaluation")
    return [Evaluation.load(root / cell.folder / "evaluation") for cell in cells]


def _of(found: Evaluations, model: str) -> dict[str, Any]:
    return accuracy_of([e.predictions for e in found], model) if found else {}


def _maps(found: Evaluations, objective: str, target: str, judge: str) -> list[pd.DataFrame]:
    """The rows per image of the first explainer and objective of these names."""
    wanted = {"objective": objective, "target": target, "family": judge, "model": MANIPULATED}
    tables = []
    for table in (e.maps for e in found):
        rows = table[(table[list(wanted)] == list(wanted.values())).all(axis=1)]
        if len(rows):
            own = ["explainer_id", "objective_id"]
            tables.append(rows[(rows[own] == rows[own].iloc[0]).all(axis=1)])
    return tables


def _share(percent: Any) -> float:
    return NAN if percent is None else percent / 100
