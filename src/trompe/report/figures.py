"""Pictures of a run for documents."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from trompe import rundir
from trompe.errors import TrompeError
from trompe.report.colour import Pixels, overlay
from trompe.report.run import MANIPULATED, ORIGINAL, Run, read_run
from trompe.report.words import view_title

SUFFIXES = (".png", ".pdf", ".svg")
SIDE, GAP, GROUP_GAP = 1.5, 0.06, 0.18  # of one picture, and between two, in inches
MARGIN, HEAD, FOOT = 0.1, 0.42, 0.42


def figure(run_dir: Path, out: Path, images: int = 4) -> Path:
    """Draw images with their heatmaps before and after, for every explainer of a run.

    One row per image; its columns are the image, then per explainer the original's and the
    manipulated model's heatmap over it.

    Parameters
    ----------
    run_dir
        A run directory with an evaluation.
    out
        The file to write: ``.png``, ``.pdf`` or ``.svg``.
    images
        How many images of the gallery to draw, from the first.

    Returns
    -------
    ``out``.

    Raises
    ------
    TrompeError
        If there is no gallery, the suffix is another, or ``images`` is below 1.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise TrompeError(f"{out} is no picture this can write; end it in {', '.join(SUFFIXES)}.")
    if images < 1:
        raise TrompeError(f"images is {images}, but a figure needs at least 1 image.")
    run = read_run(run_dir)
    if run.gallery is None:
        raise TrompeError(f"{run_dir} has no gallery; run `trompe evaluate` on it first.")
    drawn = _draw(run, min(images, len(run.gallery.images)))
    with rundir.writing(out), rc_context({"svg.hashsalt": "trompe"}):
        metadata = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
        drawn.savefig(out, dpi=160, metadata=metadata[out.suffix.lower()])
    return out


def _draw(run: Run, images: int) -> Figure:
    gallery, views = run.gallery, run.views
    assert gallery is not None
    height = SIDE * gallery.images.shape[1] / gallery.images.shape[2]
    columns = 1 + 2 * len(views)
    size = (
        2 * MARGIN + columns * SIDE + (columns - 1) * GAP + len(views) * GROUP_GAP,
        2 * MARGIN + HEAD + images * (height + FOOT),
    )
    drawn = Figure(figsize=size)

    def left(column: int) -> float:
        return MARGIN + column * (SIDE + GAP) + (column + 1) // 2 * GROUP_GAP

    def write(x: float, y: float, text: str, points: float, grey: bool = False) -> None:
        drawn.text(
            x / size[0],
            1 - y / size[1],
            text,
            fontsize=points,
            color="0.4" if grey else "0.1",
            va="baseline",
            parse_math=False,
        )

    def show(column: int, row: int, picture: Pixels) -> None:
        bottom = size[1] - MARGIN - HEAD - row * (height + FOOT) - height
        box = (left(column) / size[0], bottom / size[1], SIDE / size[0], height / size[1])
        axes = drawn.add_axes(box)
        axes.imshow(picture, interpolation="lanczos")
        axes.set_axis_off()

    for group, view in enumerate(views):
        before = 1 + 2 * group
        write(left(before), MARGIN + 0.12, _short(view_title(run, view), 40), 9.5)
        write(left(before), MARGIN + HEAD - 0.07, ORIGINAL, 8, grey=True)
        write(left(before + 1), MARGIN + HEAD - 0.07, MANIPULATED, 8, grey=True)
    for row in range(images):
        image, entry = gallery.images[row], gallery.entries[row]
        show(0, row, image)
        below = MARGIN + HEAD + row * (height + FOOT) + height
        write(left(0), below + 0.16, _short(entry["label_name"]), 8)
        said = entry["predictions"]
        kept = said[ORIGINAL] == said[MANIPULATED]
        verdict = "prediction kept" if kept else f"now: {_short(said[MANIPULATED])}"
        write(left(0), below + 0.3, verdict, 7, grey=True)
        for group, view in enumerate(views):
            for place, model in enumerate((ORIGINAL, MANIPULATED)):
                heatmap = gallery.heatmaps[view][model][row]
                show(1 + 2 * group + place, row, overlay(image, heatmap))
    return drawn


def _short(text: str, length: int = 22) -> str:
    """Cut a name to what fits under a picture."""
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return printable if len(printable) <= length else f"{printable[: length - 1]}…"
