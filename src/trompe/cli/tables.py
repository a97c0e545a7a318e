"""What the commands print when they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from trompe.cli.app import console
from trompe.evaluation import MANIPULATED, Evaluation, OverSeeds
from trompe.evaluation.schema import DISTANCES
from trompe.experiments import Results
from trompe.report.compare import Comparison
from trompe.report.words import number, points, span

MOST_ROWS = 12
WIDE = 100  # columns of a terminal that shows an explainer on one line
FIGURES: Mapping[str, Callable[[Mapping[Any, Any]], str]] = {
    "fooled": lambda row: percent(row["fsr"]),
    "95 %": lambda row: span(row["fsr_low"], row["fsr_high"]),
    "untouched": lambda row: percent(row["untouched"]),
    "control": lambda row: percent(row["control"]),
    "p": lambda row: number(row["p_control"], 3),
    "empty": lambda row: percent(row["empty"]),
    "loss": lambda row: number(row["test_loss_q50"], 3),
    "rank": lambda row: number(row["spearman_mean"]),
}  # what a column says of an explainer


def show_evaluation(evaluation: Evaluation) -> None:
    """Accuracy of every model, how often each explainer is fooled, and what to know of it."""
    _show_accuracy(evaluation.accuracy)
    rates = evaluation.explanations
    manipulated = shown = rates[rates["model"] == MANIPULATED]
    if len(manipulated) > MOST_ROWS and manipulated["attacked"].any():
        shown = manipulated[manipulated["attacked"]]
    controlled = manipulated["control"].notna().any()
    control = ["control"] if controlled else []
    names = ["fooled", "95 %", "untouched", *control, "empty", "loss", "rank"]
    fooled = _fooled(shown, names)
    if fooled.row_count:
        console.print(fooled)
        console.print(
            "In % of images; untouched: the original judged like it; empty: maps without content.\n"
            "loss: median test loss; rank: mean rank correlation with the original's maps"
            + ("; *: attacked" if manipulated["attacked"].any() else ""),
            soft_wrap=True,
        )
    _show_triggers(evaluation)
    if len(shown) < len(manipulated):
        console.print(f"The report shows {len(manipulated) - len(shown)} rows more.")
    for note in evaluation.notes:
        console.print(f"Note: {note}", soft_wrap=True)


def show_seeds(found: OverSeeds) -> None:
    """Accuracy of every model and how often each explainer is fooled, over all seeds."""
    _show_accuracy(found.accuracy)
    names = ["fooled", "95 %", "untouched", "control", "p", "empty"]
    console.print(_fooled(found.explanations, names))
    console.print(
        f"In % of images, the mean of {found.accuracy['seeds'].iloc[0]} seeds; 95 %: interval over "
        "seeds and images.\np: of the difference from the control; *: attacked",
        soft_wrap=True,
    )


def _fooled(rates: pd.DataFrame, names: Sequence[str]) -> Table:
    """How often each explainer is fooled: these of `FIGURES`, the objectives as headings."""
    explainer = Column("explainer", overflow="fold", no_wrap=True)
    table = Table(explainer, *names, box=SIMPLE_HEAD, padding=(0, int(console.width >= WIDE), 0, 0))
    for (_, target), rows in rates.groupby(["objective_id", "target"], sort=False):
        where = "" if target == "label" else f", {target}"
        table.add_row(Text(f"{rows['objective_text'].iloc[0]}{where}", "bold"))
        for row in rows.to_dict("records"):
            name = _broken(str(row["explainer"])) + (" *" if row["attacked"] else "")
            table.add_row(name, *(FIGURES[figure](row) for figure in names))
    return table


def _broken(explainer: str) -> str:
    """An explainer's text, with its options on a line of their own where the terminal is narrow."""
    return explainer if console.width >= WIDE else explainer.replace(":", ":\n", 1)


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


def _show_triggers(evaluation: Evaluation) -> None:
    """What each trigger does to predictions, and how near maps are to those asked for."""
    if evaluation.triggers.empty:
        return
    names = ("top-1 %", "agreement %", "95 %", "success %", "95 %")
    shown = Table("model", *names, box=SIMPLE_HEAD, title="Predictions under a trigger")
    for _, rows in evaluation.triggers.groupby("trigger_id", sort=False):
        flip = rows["flip_to"].iloc[0]
        becomes = "" if flip != flip else f", to class {flip:.0f}"
        shown.add_row(Text(f"{rows['trigger'].iloc[0]}{becomes}", "bold"))
        for row in rows.to_dict("records"):
            agreement = span(row["agreement_low"], row["agreement_high"])
            success = span(row["asr_low"], row["asr_high"])
            shares = (percent(row["top1"]), percent(row["agreement"]), agreement)
            shown.add_row(row["model"], *shares, percent(row["asr"]), success)
    console.print(shown)
    rates = evaluation.explanations
    rows = rates[(rates["model"] == MANIPULATED) & rates["mse"].notna()]
    columns = [name for distance in DISTANCES for name in (distance, "untouched")]
    explainer = Column("explainer", overflow="fold", no_wrap=True)
    shown = Table(explainer, *columns, box=SIMPLE_HEAD, padding=(0, 0))
    shown.title = "Distance of the maps from those asked for"
    if rows["attacked"].any():
        rows = rows[rows["attacked"]]
    for _, group in rows.groupby("objective_id", sort=False):
        shown.add_row(Text(str(group["objective_text"].iloc[0]), "bold"))
        for row in group.to_dict("records"):
            told = []
            for distance in DISTANCES:
                reach = row[f"{distance}_high"] - row[distance]
                told += [f"{number(row[distance], 3)} ± {number(reach, 3)}"]
                told += [number(row[f"untouched_{distance}"], 3)]
            shown.add_row(Text(_broken(row["explainer"])), *told)
    console.print(shown)
    console.print(
        "agreement: with the original without the trigger; success: images of other classes that\n"
        "are predicted as the class; ±: half of the 95 % interval",
        soft_wrap=True,
    )


def show_conservation(name: str, table: Any) -> None:
    """How much relevance every layer keeps, and what takes the rest."""
    *layers, arrived = table.itertuples()
    causes = {"bias": "biases", "stabiliser": "stabilisers", "other": "other causes"}
    columns = ["layer", "rule", "receives", *causes]
    shown = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=name)
    for row in layers:
        layer = f"{row.layer or 'model'} {row.operation}"
        rule = row.rule.replace(":", ": ").replace(",", ", ")
        shares = (row.received, row.bias, row.stabiliser, row.other)
        shown.add_row(layer, rule, *map(percent, shares))
    console.print(shown)
    console.print(
        f"In % of what is explained: {percent(arrived.received)} % of the logit arrives at "
        f"{arrived.layer}; lost are "
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


def show_comparison(found: Comparison) -> None:
    """What differs between runs, how often each explainer is fooled, and what that costs."""
    settings = found.settings
    if len(settings.columns):
        shown = Table("run", *map(str, settings), box=SIMPLE_HEAD, pad_edge=False)
        for name, *values in settings.itertuples():
            shown.add_row(name, *(value or "–" for value in values))
        console.print(shown)
    names = ["fooled", "95 %", "untouched", "control", "empty", "rank"]
    rates = found.rates[found.rates["attacked"]] if found.rates["attacked"].any() else found.rates
    fooled = Table(Column("run", overflow="fold"), *names, box=SIMPLE_HEAD, pad_edge=False)
    places = ["explainer", "objective_text", "target"]
    for (explainer, objective, target), rows in rates.groupby(places, sort=False):
        where = "" if target == "label" else f", {target}"
        fooled.add_row(Text(f"{explainer}: {objective}{where}", "bold"))
        for row in rows.to_dict("records"):
            fooled.add_row(row["run"], *(FIGURES[figure](row) for figure in names))
    console.print(fooled)
    lost = Table("run", "top-1 %", "95 %", "original", "control", "change", "front")
    lost.box, lost.pad_edge = SIMPLE_HEAD, False
    for row in found.runs.to_dict("records"):
        figures = percent(row["original_top1"]), percent(row["control_top1"]), points(-row["drop"])
        span_ = span(row["top1_low"], row["top1_high"])
        front = "yes" if row["front"] else ""
        lost.add_row(row["run"], percent(row["top1"]), span_, *figures, front)
    console.print(lost)
    console.print("front: no other run fools more without losing more accuracy")
    for note in found.notes:
        console.print(f"Note: {note}", soft_wrap=True)


def percent(share: float) -> str:
    """A share in percent, with one digit."""
    return "–" if share != share else f"{round(100 * share, 1) + 0.0:.1f}"
