"""The transfer matrix as a figure: which attack reaches which explainer."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from trompe.colour import INK_TURNS, RATE
from trompe.errors import printable
from trompe.evaluation.schema import CONTROL, ORIGINAL
from trompe.report.words import family_name, objective_title

WIDTH, HEIGHT, NAMES, HEADS = 0.37, 0.3, 1.5, 0.75  # of a cell and of its labels, in inches
PLAIN = (0.94, 0.94, 0.93, 1)


def draw(rows: pd.DataFrame) -> Figure:
    """Draw one matrix per network: a line per attack, a column per explainer.

    Parameters
    ----------
    rows
        Success rates ``fsr`` in [0, 1] by ``network``, ``line`` and ``column``; those ``attacked``
        are outlined, those that are NaN are left empty, and ``paper_fsr``, where there is one, is
        written small below.
    """
    names = ["network", "column", "line"]
    rows = rows.assign(**{key: rows[key].map(lambda name: printable(str(name))) for key in names})
    networks, columns, lines = (list(dict.fromkeys(rows[key])) for key in names)
    size = (
        NAMES + len(networks) * (WIDTH * len(columns) + 0.15),
        HEADS + HEIGHT * len(lines),
    )
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    found = {(r["network"], r["line"], r["column"]): r for r in records(rows)}
    for axes, network in zip(panels, networks, strict=True):
        axes.set_title(network, fontsize=7.5, parse_math=False)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xticks(
            range(len(columns)),
            columns,
            fontsize=6,
            rotation=35,
            ha="right",
            rotation_mode="anchor",
            parse_math=False,
        )
        axes.set_yticks(range(len(lines)), lines, fontsize=6.5, parse_math=False)
        axes.tick_params(length=0, pad=2)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for y, line in enumerate(lines):
            for x, column in enumerate(columns):
                if record := found.get((network, line, column)):
                    _square(axes, x, y, record)
    return figure


def of_grid(rates: pd.DataFrame) -> Figure:
    """Draw the success rates of a grid, `schema.GRID_RATES`."""
    lines = [
        attack(
            objective_title(row["objective"]),
            family_name(row["through"]),
            None if row["target"] == "label" else row["target"],
        )
        for row in records(rates)
    ]
    return draw(rates.assign(line=lines, column=rates["family"].map(family_name)))


def attack(objective: str, through: str, target: str | None) -> str:
    """Name an attack: its objective, the explainer in the loss, the class of an active one."""
    honest = through in (CONTROL, ORIGINAL)
    by = f", {through}" if honest else f" by {through}" if through else ""
    return f"{objective}{by}" + (f", {target}" if target else "")


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by column name."""
    return [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]


def _square(axes: Any, x: int, y: int, record: dict[str, Any]) -> None:
    rate, printed = record["fsr"], record["paper_fsr"]
    known = rate == rate
    face = RATE(rate) if known else PLAIN
    edge = "crimson" if record["attacked"] else face
    axes.add_patch(
        Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, facecolor=face, edgecolor=edge, linewidth=1.2)
    )
    ink = "white" if known and rate < INK_TURNS else "black"
    shown = f"{100 * rate:.1f}" if known else "–"
    lifted = 0.12 if printed == printed else 0
    axes.text(x, y - lifted, shown, ha="center", va="center", fontsize=6, color=ink)
    if printed == printed:
        text = f"{100 * printed:.1f}"
        axes.text(x, y + 0.25, text, ha="center", va="center", fontsize=4.5, color=ink)
