"""What the commands print when they end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from trompe.cli.app import console
from trompe.evaluation import MANIPULATED, Evaluation, OverSeeds
from trompe.experiments import Results
from trompe.report.words import number, points, span

MOST_ROWS = 12


def show_evaluation(evaluation: Evaluation) -> None:
    """Accuracy of every model, how often each explainer is fooled, and what to know of it."""
    _show_accuracy(evaluation.accuracy)
    rates = evaluation.explanations
    manipulated = shown = rates[rates["model"] == MANIPULATED]
    if len(manipulated) > MOST_ROWS and manipulated["attacked"].any():
        shown = manipulated[manipulated["attacked"]]
    controlled = manipulated["control"].notna().any()
    fooled = Table(
        Column("explainer", overflow="fold"),
        *("fooled", "95 %", "untouched", *(["control"] if controlled else [])),
        *("empty", "loss", "rank"),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for what, rows in _by_objective(shown):
        fooled.add_row(what)
        for row in rows:
            fooled.add_row(
                escape(row["explainer"]) + (" *" if row["attacked"] else ""),
                percent(row["fsr"]),
                span(row["fsr_low"], row["fsr_high"]),
                percent(row["untouched"]),
                *([percent(row["control"])] if controlled else []),
                percent(row["empty"]),
                number(row["test_loss_q50"], 3),
                number(row["spearman_mean"]),
            )
    if fooled.row_count:
        console.print(fooled)
        console.print(
            "In % of images; untouched: the original judged like it; empty: maps without content.\n"
            "loss: median test loss; rank: mean rank correlation with the original's maps"
            + ("; *: attacked" if manipulated["attacked"].any() else ""),
            soft_wrap=True,
        )
    if len(shown) < len(manipulated):
        console.print(f"The report shows {len(manipulated) - len(shown)} rows more.")
    for note in evaluation.notes:
        console.print(f"Note: {note}", soft_wrap=True, markup=False)


def show_seeds(found: OverSeeds) -> None:
    """Accuracy of every model and how often each explainer is fooled, over all seeds."""
    _show_accuracy(found.accuracy)
    fooled = Table(
        Column("explainer", overflow="fold"),
        *("fooled", "95 %", "untouched", "control", "p", "empty"),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for what, rows in _by_objective(found.explanations):
        fooled.add_row(what)
        for row in rows:
            fooled.add_row(
                escape(row["explainer"]) + (" *" if row["attacked"] else ""),
                percent(row["fsr"]),
                span(row["fsr_low"], row["fsr_high"]),
                percent(row["untouched"]),
                percent(row["control"]),
                number(row["p_control"], 3),
                percent(row["empty"]),
            )
    console.print(fooled)
    console.print(
        f"In % of images, the mean of {found.accuracy['seeds'].iloc[0]} seeds; 95 %: interval over "
        "seeds and images.\np: of the difference from the control; *: attacked",
        soft_wrap=True,
    )


def _by_objective(rates: pd.DataFrame) -> Iterator[tuple[str, list[dict[Any, Any]]]]:
    """The rows of each objective and target, under a heading."""
    for (_, target), rows in rates.groupby(["objective_id", "target"], sort=False):
        where = "" if target == "label" else escape(f", {target}")
        yield f"[bold]{escape(rows['objective_text'].iloc[0])}{where}[/]", rows.to_dict("records")


def _show_accuracy(accuracy: pd.DataFrame) -> None:
    """Top-1 and top-5 of every model, and how often it agrees with the original."""
    shown = Table("model", "top-1 %", "95 % interval", "top-5 %", "agreement %", box=SIMPLE_HEAD)
    for row in accuracy.to_dict("records"):
        shown.add_row(
            row["model"],
            percent(row["top1"]),
            f"{percent(row['top1_low'])} to {percent(row['top1_high'])}",
            percent(row["top5"]),
            percent(row["agreement"]),
        )
    console.print(shown)


def show_conservation(name: str, table: Any) -> None:
    """How much relevance every layer keeps, and what takes the rest."""
    *layers, arrived = table.itertuples()
    causes = {"bias": "biases", "stabiliser": "stabilisers", "other": "other causes"}
    shown = Table(
        "layer",
        Column("rule", overflow="fold"),
        "receives %",
        *(f"{cause} %" for cause in causes),
        title=name,
    )
    for row in layers:
        layer = f"{row.layer or 'model'} {row.operation}"
        shares = (row.received, row.bias, row.stabiliser, row.other)
        shown.add_row(escape(layer), escape(row.rule), *map(percent, shares))
    console.print(shown)
    console.print(
        f"{percent(arrived.received)} % of the logit arrives at {arrived.layer}; lost are "
        + ", ".join(f"{percent(table[c].sum())} % to {words}" for c, words in causes.items())
        + "."
    )


def show_grid(results: Results) -> None:
    """Each cell of the grid, explained by what it attacked."""
    columns = ["network", "objective", "attacked", "fooled %", "untouched %", "control %"]
    columns += ["empty %", "paper", "top-1", "paper"]
    shown = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    accuracy = results.accuracy.set_index("cell")
    for row in results.rates[results.rates["attacked"]].to_dict("records"):
        lost = accuracy.loc[row["cell"]]
        target = "" if row["target"] == "label" else f", {row['target']}"
        shown.add_row(
            row["network"],
            row["objective"] + target,
            row["through"],
            percent(row["fsr"]) if row["seeds"] else "not run",
            percent(row["untouched"]),
            percent(row["control"]),
            percent(row["empty"]),
            percent(row["paper_fsr"]),
            points(-lost["drop"]),
            points(-lost["paper_drop"]),
        )
    console.print(shown)
    console.print("Each model explained by what was attacked; top-1: change in points.")


def percent(share: float) -> str:
    """A share in percent, with one digit."""
    return "–" if share != share else f"{round(100 * share, 1) + 0.0:.1f}"
