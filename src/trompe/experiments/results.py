"""Finished cells as the paper's tables, with the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trompe import runs
from trompe.evaluation.evaluate import MANIPULATED, ORIGINAL
from trompe.experiments.grid import SECTIONS, Cell, Grid, paper
from trompe.experiments.runner import is_finished

NAN = float("nan")


@dataclass(frozen=True)
class Results:
    """What a grid has shown so far, shares in [0, 1]; NaN where a cell is not finished.

    Attributes
    ----------
    rates
        One row per cell, target class and explainer: ``fsr`` with its bootstrap 95 % interval,
        that of the control, share of empty maps, the paper's.
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
                table.to_csv(new / f"{name}.csv", index=False)
                table.to_parquet(new / f"{name}.parquet", index=False)


def collect(grid: Grid, root: Path) -> Results:
    """Read the finished cells of ``grid`` under ``root``."""
    controls = {cell.network: cell for cell in grid.cells if cell.section == "control"}
    cells = [cell for cell in grid.cells if cell.section in SECTIONS]
    return Results(
        pd.DataFrame([row for cell in cells for row in _rates(cell, root, controls)]),
        pd.DataFrame([_accuracy(cell, root, controls) for cell in cells]),
    )


def family(explainer: str) -> str:
    """The explainer's name in the paper's tables: ``lrp:layer=layer4`` is ``lrp-t``."""
    kind, _, options = explainer.partition(":")
    kind = kind.removesuffix("-t")
    at_layer = kind != "grad-cam" and (explainer.startswith(f"{kind}-t") or "layer=" in options)
    return f"{kind}-t" if at_layer else kind


def _rates(cell: Cell, root: Path, controls: dict[str, Cell]) -> Iterator[dict[str, Any]]:
    published = paper()
    judges = [family(spec) for spec in cell.settings["eval_explainer"]]
    found = _table(cell, root, "explanations")
    honest = _table(controls.get(cell.network), root, "explanations")
    for target in ("c1", "c2") if cell.section == "active" else ("label",):
        line = published["active"][target] if target != "label" else {}
        line = line or published["passive"].get(cell.objective, {})
        figures = line.get(cell.explainer, {}).get(cell.network, [])
        printed = dict(zip(published["explainers"][cell.section], figures, strict=False))
        for judge in judges:
            ours = _row(found, cell.objective, target, judge)
            kept = _row(honest, cell.objective, target, judge)
            yield {
                **_place(cell, root),
                "target": target,
                "explainer": judge,
                "on_diagonal": judge == cell.explainer,
                **{key: ours.get(key, NAN) for key in ("fsr", "fsr_low", "fsr_high", "empty")},
                "images": ours.get("images", NAN),
                "control_fsr": kept.get("fsr", NAN),
                "paper_fsr": _share(printed.get(judge)),
            }


def _accuracy(cell: Cell, root: Path, controls: dict[str, Cell]) -> dict[str, Any]:
    published = paper()
    name = "active" if cell.section == "active" else cell.objective
    printed = published["accuracy"].get(name, {}).get(cell.explainer, {}).get(cell.network)
    before = published["baseline"].get(cell.network)
    found = _table(cell, root, "accuracy")
    measured = _of(found, MANIPULATED)
    row = {key: measured.get(key, NAN) for key in ("top1", "top1_low", "top1_high", "top5")}
    original = _of(found, ORIGINAL).get("top1", NAN)
    honest = _table(controls.get(cell.network), root, "accuracy")
    control = _of(honest, MANIPULATED).get("top1", NAN)
    return {
        **_place(cell, root),
        **row,
        "original_top1": original,
        "control_top1": control,
        "drop": original - row["top1"],
        "drop_from_control": control - row["top1"],
        "paper_top1": _share(printed and printed[0]),
        "paper_drop": _share(printed and before and round(before[0] - printed[0], 6)),
    }


def _place(cell: Cell, root: Path) -> dict[str, Any]:
    return {
        "cell": cell.name,
        "section": cell.section,
        "network": cell.title,
        "objective": cell.objective.partition(":")[0],
        "attacked": cell.explainer,
        "finished": is_finished(cell, root),
    }


def _table(cell: Cell | None, root: Path, name: str) -> pd.DataFrame | None:
    if cell is None or not is_finished(cell, root):
        return None
    return pd.read_csv(root / cell.folder / "evaluation" / f"{name}.csv")


def _of(accuracy: pd.DataFrame | None, model: str) -> dict[Any, Any]:
    return {} if accuracy is None else dict(accuracy.set_index("model").loc[model])


def _row(table: pd.DataFrame | None, objective: str, target: str, judge: str) -> dict[Any, Any]:
    if table is None:
        return {}
    kinds = table["objective"].str.partition(":")[0]
    rows = table[
        (kinds == objective.partition(":")[0])
        & (table["target"] == target)
        & (table["explainer"].map(family) == judge)
        & (table["model"] == MANIPULATED)
    ]
    return dict(rows.iloc[0]) if len(rows) else {}


def _share(percent: Any) -> float:
    return NAN if percent is None else percent / 100
