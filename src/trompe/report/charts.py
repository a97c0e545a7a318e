"""Geometry of the report's small drawings; the template turns it into SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from trompe.evaluation.schema import CONTROL, MANIPULATED
from trompe.report.run import Run
from trompe.report.words import number


@dataclass(frozen=True)
class Frame:
    """Size of a chart and the edges of its plotting area, in SVG units."""

    width: int = 360
    height: int = 210
    left: int = 44
    right: int = 348
    top: int = 10
    bottom: int = 184


FRAME = Frame()
BINS = 90  # points of a line over the steps
BARS = 36  # of a distribution
# Columns of the history that are no term of the objective.
FIGURES = {
    *("step", "loss", "classification", "opposition", "faintness", "success", "top1", "alpha"),
    *("lr", "divergence", "held_out_success", "held_out_top1", "held_out_divergence"),
}


@dataclass(frozen=True)
class Curve:
    """A line with a filled shape behind it, as SVG paths."""

    name: str
    style: str
    line: str
    band: str


@dataclass(frozen=True)
class Chart:
    """Curves, with the places and labels of the ticks, and perhaps an interval to shade."""

    title: str
    about: str
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Distributions:
    """The test losses of one objective and target, a chart per explainer."""

    objective: str
    target: str | None
    charts: list[Chart]


class _Axis(NamedTuple):
    """From values to SVG units along one side of the frame."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1)
        return round(self.start + (self.end - self.start) * share, 1)


def training_charts(
    history: pd.DataFrame, control: pd.DataFrame | None, names: Mapping[str, str]
) -> list[Chart]:
    """Draw losses, accuracy and success rate of the training batches over the steps.

    ``names`` says what the terms of the loss are called, by column of the history.
    """
    terms = [str(c) for c in history if c not in FIGURES and not str(c).startswith("success ")]
    runs = [("manipulated", "main", history)]
    runs += [] if control is None else [("control", "control", control)]

    def both(column: str, factor: float = 1) -> list[_Series]:
        return [
            _series(name, style, table.assign(**{column: factor * table[column]}), column)
            for name, style, table in runs
            if column in table
        ]

    def held_out(column: str) -> list[_Series]:
        name = f"held_out_{column}"
        if name not in history:
            return []
        table = history.assign(**{name: 100 * history[name]})
        return [_series("manipulated, held-out images", "main dash-1", table, name)]

    dashed = [
        _series(names.get(term, term), f"main dash-{i % 4}", history, term)
        for i, term in enumerate(terms)
    ]
    charts = [
        _over_steps("Classification loss", both("classification")),
        _over_steps("Explanation loss", dashed),
        _over_steps("Top-1 in training, %", both("top1", 100) + held_out("top1")),
        _over_steps(
            "Fooled in training, %", both("success", 100) + held_out("success"), limits=(0, 100)
        ),
    ]
    return [chart for chart in charts if chart]


def distributions(run: Run) -> list[Distributions]:
    """Draw how the test losses spread over the images, against the interval of success."""
    if run.per_image is None:
        return []
    table = run.per_image.sort_values("attacked", ascending=False, kind="stable")
    table = table[np.isfinite(table["test_loss"]) & table["counted"]]
    found = []
    for (objective, target), rows in table.groupby(["objective_id", "target"], sort=False):
        interval = float(rows["interval_low"].iloc[0]), float(rows["interval_high"].iloc[0])
        charts = [
            _distribution(
                run.label(str(explainer)), losses, interval, rows["test_loss"].to_numpy(dtype=float)
            )
            for explainer, losses in rows.groupby("explainer_id", sort=False)
        ]
        found.append(Distributions(run.label(str(objective)), run.target_name(str(target)), charts))
    return found


def _distribution(
    explainer: str, rows: pd.DataFrame, interval: tuple[float, float], every: NDArray[np.floating]
) -> Chart:
    """One explainer's losses as shares of its images, on the scale of all explainers."""
    ends = [*(end for end in interval if np.isfinite(end)), every.min(), every.max()]
    x_ticks, low, high = _ticks(min(ends), max(ends))
    edges = np.linspace(low, high, BARS + 1)
    shares = {
        model: np.histogram(losses["test_loss"], edges)[0] / len(losses)
        for model, losses in rows.groupby("model")
    }
    y_ticks, _, top = _ticks(0, 100 * max(share.max() for share in shares.values()), 3)
    x = _Axis(low, high, FRAME.left, FRAME.right)
    y = _Axis(0, top, FRAME.bottom, FRAME.top)
    curves = []
    for model, style in ((MANIPULATED, "main"), (CONTROL, "control")):
        if model in shares:
            steps = " ".join(
                f"{x(left)},{y(100 * share)} {x(right)},{y(100 * share)}"
                for left, right, share in zip(
                    edges[:-1], edges[1:], shares[model].tolist(), strict=True
                )
            )
            outline = f"M{x(low)},{y(0)} {steps} {x(high)},{y(0)}"
            curves.append(Curve(model, style, outline, f"{outline}Z"))
    attacked = bool(rows["attacked"].any())
    return Chart(
        explainer,
        f"test losses of {'an attacked' if attacked else 'a not attacked'} explainer, "
        "in % of images",
        curves,
        _labelled(x, x_ticks),
        _labelled(y, y_ticks),
        (x(max(interval[0], low)), x(min(interval[1], high))),
    )


class _Series(NamedTuple):
    """A curve before it is drawn: mean, low and high by step, empty where nothing is finite."""

    name: str
    style: str
    bins: pd.DataFrame
    last: float


def _series(name: str, style: str, history: pd.DataFrame, column: str) -> _Series:
    """Gather a column in at most ``BINS`` bins of steps: mean and quantiles by mean step."""
    finite = history[np.isfinite(history[column])]
    groups = np.arange(len(finite)) * min(BINS, len(finite)) // max(len(finite), 1)
    bins = finite[column].groupby(groups)
    columns = {"mean": bins.mean(), "low": bins.quantile(0.1), "high": bins.quantile(0.9)}
    binned = pd.DataFrame(columns).set_index(finite["step"].groupby(groups).mean())
    return _Series(name, style, binned, float(history["step"].max()))


def _over_steps(
    title: str, series: Sequence[_Series], limits: tuple[float, float] | None = None
) -> Chart | None:
    series = [one for one in series if len(one.bins)]
    if not series:
        return None
    values = np.concatenate([one.bins.to_numpy(dtype=float).ravel() for one in series])
    y_ticks, low, high = _ticks(*(limits or (float(values.min()), float(values.max()))))
    last = max(one.last for one in series)
    x_ticks = MaxNLocator(4, integer=True).tick_values(0, last)
    x = _Axis(0, last, FRAME.left, FRAME.right)
    y = _Axis(low, high, FRAME.bottom, FRAME.top)

    def path(values: pd.DataFrame, column: str) -> str:
        places = zip(values.index.to_list(), values[column].to_list(), strict=True)
        return " ".join(f"{x(step)},{y(value)}" for step, value in places)

    curves = [
        Curve(name, style, f"M{path(v, 'mean')}", f"M{path(v, 'low')} {path(v[::-1], 'high')}Z")
        for name, style, v, _ in series
    ]
    return Chart(
        title,
        "over training steps",
        curves,
        [(x(tick), f"{tick:,.0f}") for tick in x_ticks if tick <= last],
        _labelled(y, y_ticks),
    )


def _ticks(low: float, high: float, count: int = 4) -> tuple[NDArray[np.floating], float, float]:
    """Round values that cover an interval, and the first and the last of them."""
    middle = (low + high) / 2
    half = max((high - low) / 2, 0.01 * abs(middle), 1e-6)
    locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    ticks = np.asarray(locator.tick_values(middle - half, middle + half))
    return ticks, float(ticks[0]), float(ticks[-1])


def _labelled(axis: _Axis, ticks: NDArray[np.floating]) -> list[tuple[float, str]]:
    decimals = len(f"{ticks[1] - ticks[0]:.10f}".rstrip("0").partition(".")[2])
    return [(axis(tick), number(float(tick), decimals)) for tick in ticks]
