"""Figures of a run for papers: pictures before and after, and how far the lie carries over."""

import math
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from trompe import runs
from trompe.base.messages import check_name
from trompe.colour import Pixels, overlay
from trompe.errors import TrompeError, printable
from trompe.evaluation import schema
from trompe.evaluation.result import read_table
from trompe.evaluation.schema import MANIPULATED, ORIGINAL
from trompe.objectives import Active
from trompe.report import transfer
from trompe.report.run import Run, View, read_run
from trompe.report.words import joined, view_title

LAYOUTS = ("passive", "active", "transfer")
SUFFIXES = (".pdf", ".svg", ".png")
WIDTH = 5.5  # inches: the text of a one-column paper
LARGEST = 1.5  # of one picture, in inches
INK, GREY = "0.1", "0.35"
GAP, GROUP_GAP, MARGIN, HEAD, FOOT = 0.04, 0.12, 0.05, 0.36, 0.31


def figure(run_dir: Path, out: Path, layout: str | None = None, images: int = 4) -> Path:
    """Draw a figure of a run.

    ``passive`` and ``active`` have one row per image: the image, then for every explainer (and,
    where the lie is active, for each of the two classes) the heatmap of the original and of the
    manipulated model. ``transfer`` is the matrix of success rates, attacks by explainers.

    Parameters
    ----------
    run_dir
        A run directory with an evaluation; for ``transfer`` also that of ``trompe reproduce``.
    out
        The file to write: ``.pdf``, ``.svg`` or ``.png``.
    layout
        What to draw; None for the pictures of whatever lie the run holds.
    images
        How many images of the gallery to draw, from the first.

    Returns
    -------
    ``out``.

    Raises
    ------
    TrompeError
        If the run does not hold what is to be drawn, the suffix or the layout is another, or
        ``images`` is below 1.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise TrompeError(f"{out} is no picture this can write; end it in {', '.join(SUFFIXES)}.")
    if images < 1:
        raise TrompeError(f"images is {images}, but a figure needs at least 1 image.")
    if layout is not None:
        check_name("layout", layout, LAYOUTS)
    drawn = _transfer(run_dir) if layout == "transfer" else _pictures(run_dir, layout, images)
    with runs.writing(out), rc_context({"svg.hashsalt": "trompe", "pdf.fonttype": 42}):
        metadata = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
        drawn.savefig(out, dpi=200, metadata=metadata[out.suffix.lower()])
    return out


def _pictures(run_dir: Path, layout: str | None, images: int) -> Figure:
    run = read_run(run_dir)
    if run.gallery is None:
        raise TrompeError(f"{run_dir} has no gallery; run `trompe evaluate` on it first.")
    kinds: dict[str, list[View]] = {"passive": [], "active": []}
    for view in run.views:
        kinds["active" if view.target in Active.targets else "passive"].append(view)
    layout = layout or next((kind for kind, views in kinds.items() if views), "passive")
    if not kinds[layout]:
        found = joined([kind for kind, views in kinds.items() if views])
        raise TrompeError(f"{run_dir} holds no {layout} fooling; draw its layout {found}.")
    return _rows(run, kinds[layout], min(images, len(run.gallery.images)))


def _transfer(run_dir: Path) -> Figure:
    grid = runs.contained(run_dir) / "tables" / "rates.csv"
    if grid.is_file():
        return transfer.of_grid(read_table(grid, schema.GRID_RATES))
    run = read_run(run_dir)
    if run.explanations is None:
        raise TrompeError(f"{run_dir} has no success rates; run `trompe evaluate` on it first.")
    rates = run.explanations
    attacked = [run.label(e) for e in rates[rates["attacked"]]["explainer_id"].unique()]
    lied = rates["model"] == MANIPULATED
    return transfer.draw(
        rates.assign(
            network=str(run.config.get("model", "")),
            line=[
                transfer.attack(
                    run.label(row["objective_id"]),
                    joined(attacked) if row["model"] == MANIPULATED else row["model"],
                    run.target_name(row["target"]),
                )
                for row in rates.to_dict("records")
            ],
            column=rates["explainer_id"].map(run.label),
            attacked=rates["attacked"] & lied,
            paper_fsr=math.nan,
        )
    )


def _rows(run: Run, views: list[View], images: int) -> Figure:
    gallery = run.gallery
    assert gallery is not None
    columns = 1 + 2 * len(views)
    gaps = 2 * MARGIN + (columns - 1) * GAP + len(views) * GROUP_GAP
    side = min(LARGEST, (WIDTH - gaps) / columns)
    height = side * gallery.images.shape[1] / gallery.images.shape[2]
    size = (gaps + columns * side, 2 * MARGIN + HEAD + images * (height + FOOT))
    drawn = Figure(figsize=size)

    def left(column: int) -> float:
        return MARGIN + column * (side + GAP) + (column + 1) // 2 * GROUP_GAP

    def write(x: float, y: float, text: str, points: float, room: float, ink: str = INK) -> None:
        drawn.text(
            x / size[0],
            1 - y / size[1],
            _short(text, round(room * 72 / (0.52 * points))),
            fontsize=points,
            color=ink,
            va="baseline",
            parse_math=False,
        )

    def show(column: int, row: int, picture: Pixels) -> None:
        bottom = size[1] - MARGIN - HEAD - row * (height + FOOT) - height
        box = (left(column) / size[0], bottom / size[1], side / size[0], height / size[1])
        axes = drawn.add_axes(box)
        axes.imshow(picture, interpolation="lanczos")
        axes.set_axis_off()

    for group, view in enumerate(views):
        before = 1 + 2 * group
        write(left(before), MARGIN + 0.12, view_title(run, view), 7.5, 2 * side)
        write(left(before), MARGIN + HEAD - 0.06, ORIGINAL, 6, side, GREY)
        write(left(before + 1), MARGIN + HEAD - 0.06, MANIPULATED, 6, side, GREY)
    for row in range(images):
        image, entry = gallery.images[row], gallery.entries[row]
        show(0, row, image)
        below = MARGIN + HEAD + row * (height + FOOT) + height
        write(left(0), below + 0.11, entry["label_name"], 6.5, 1.5 * side)
        said = entry["predictions"]
        kept = said[ORIGINAL] == said[MANIPULATED]
        verdict = "prediction kept" if kept else f"now: {said[MANIPULATED]}"
        write(left(0), below + 0.21, verdict, 5.5, 1.5 * side, GREY)
        for group, view in enumerate(views):
            for place, model in enumerate((ORIGINAL, MANIPULATED)):
                heatmap = gallery.heatmaps[view][model][row]
                show(1 + 2 * group + place, row, overlay(image, heatmap))
    return drawn


def _short(text: str, length: int) -> str:
    """Cut a name to what fits."""
    shown = printable(text)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"
