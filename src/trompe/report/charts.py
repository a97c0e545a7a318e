"""Geometry of the report's small drawings; the template turns it into SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from trompe.report.words import number, term_name


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
BINS = 90
# Columns of the history that are no term of the objective.
FIGURES = {"step", "loss", "classification", "opposition", "success", "factor", "drop"}


@dataclass(frozen=True)
class Curve:
    """A line (the mean of each bin of steps) in a band (10 % to 90 % quantile), as SVG paths."""

    name: str
    style: str
    line: str
    band: str


@dataclass(frozen=True)
class Chart:
    """Curves over training steps, with the places and labels of the ticks."""

    title: str
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Strip:
    """Where quantiles lie against the interval that counts as fooled, each in [0, 100]."""

    interval: tuple[float, float]
    low: float
    middle: float
    high: float


def training_charts(history: pd.DataFrame, control: pd.DataFrame | None) -> list[Chart]:
    """Draw classification loss, explanation terms and running success rate over the steps."""
    terms = [str(c) for c in history if c not in FIGURES]
    classification = [_series("manipulated", "main", history, "classification")]
    if control is not None:
        classification.append(_series("control", "control", control, "classification"))
    charts = [_chart("Classification loss", classification)]
    dashed = [
        _series(term_name(term), f"main dash-{i % 4}", history, term)
        for i, term in enumerate(terms)
    ]
    charts.append(_chart("Explanation loss", dashed))
    if "success" in history:
        success = history.assign(success=100 * history["success"])
        series = _series("manipulated", "main", success, "success")
        charts.append(_chart("Fooled in training, %", [series], limits=(0, 100)))
    if "drop" in history:
        points = history.assign(drop=100 * history["drop"])
        lost = _series("manipulated", "main", points, "drop")
        charts.append(_chart("Top-1 lost on held-out images, points", [lost]))
    return [chart for chart in charts if chart]


def place(
    interval: tuple[float, float], quantiles: tuple[float, float, float], scale: tuple[float, float]
) -> Strip | None:
    """Place the quantiles (5 %, 50 %, 95 %) of test losses on a scale; ``None`` without any."""
    if any(map(math.isnan, quantiles)):
        return None
    span = scale[1] - scale[0] or 1.0

    def at(value: float) -> float:
        return round(100 * min(max((value - scale[0]) / span, 0), 1), 1)

    low, middle, high = map(at, quantiles)
    return Strip((at(interval[0]), at(interval[1])), low, middle, high)


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


def _chart(
    title: str, series: Sequence[_Series], limits: tuple[float, float] | None = None
) -> Chart | None:
    series = [one for one in series if len(one.bins)]
    if not series:
        return None
    all_values = np.concatenate([one.bins.to_numpy(dtype=float).ravel() for one in series])
    low, high = limits or (float(all_values.min()), float(all_values.max()))
    middle = (low + high) / 2
    half = max((high - low) / 2, 0.01 * abs(middle), 1e-6)
    y_ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(middle - half, middle + half)
    low, high = y_ticks[0], y_ticks[-1]
    last = max(one.last for one in series)
    x_ticks = MaxNLocator(4, integer=True).tick_values(0, last)

    def x(step: float) -> float:
        return round(FRAME.left + (FRAME.right - FRAME.left) * step / (last or 1), 1)

    def y(value: float) -> float:
        return round(FRAME.top + (FRAME.bottom - FRAME.top) * (high - value) / (high - low), 1)

    def path(values: pd.DataFrame, column: str) -> str:
        places = zip(values.index.to_list(), values[column].to_list(), strict=True)
        return " ".join(f"{x(step)},{y(value)}" for step, value in places)

    curves = [
        Curve(name, style, f"M{path(v, 'mean')}", f"M{path(v, 'low')} {path(v[::-1], 'high')}Z")
        for name, style, v, _ in series
    ]
    decimals = len(f"{y_ticks[1] - y_ticks[0]:.10f}".rstrip("0").partition(".")[2])
    return Chart(
        title,
        curves,
        [(x(tick), f"{tick:,.0f}") for tick in x_ticks if tick <= last],
        [(y(tick), number(tick, decimals)) for tick in y_ticks],
    )
