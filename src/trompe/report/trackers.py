"""Experiment trackers, as accelerate drives them: figures of every step, heatmaps at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from trompe.base.messages import check_name
from trompe.errors import TrompeError
from trompe.evaluation import MANIPULATED, ORIGINAL, Evaluation
from trompe.report import overlay

TRACKERS = ("tensorboard", "wandb", "mlflow")
PROJECT = "trompe"
IMAGES = 4


class Tracking:
    """The trackers of one run; none is fine. They start at its first step.

    Parameters
    ----------
    names
        Of `TRACKERS`.
    directory
        The run directory; TensorBoard's files lie in its folder ``tensorboard``.
    settings
        The resolved config.
    """

    def __init__(self, names: Sequence[str], directory: Path, settings: Mapping[str, Any]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.directory = directory
        self.settings = settings
        self._trackers: list[Any] = []

    def step(self, name: str, row: Mapping[str, float]) -> None:
        """Log one step's figures under the name of the fine-tuning that they belong to."""
        for missing in self.names[len(self._trackers) :]:
            tracker = _tracker(missing, self.directory)
            tracker.start()
            self._trackers.append(tracker)
            tracker.store_init_configuration({k: _scalar(v) for k, v in self.settings.items()})
        figures = {_plain(f"{name}/{k}"): v for k, v in row.items()}
        for tracker in self._trackers:
            tracker.log(figures, step=_step(tracker, int(row["step"])))

    def finish(self) -> None:
        """Close what was started."""
        for tracker in self._trackers:
            tracker.finish()

    def evaluation(self, evaluation: Evaluation, step: int) -> None:
        """Log how often each explainer is fooled, and a few images before and after."""
        rates = evaluation.explanations
        figures = {
            _plain(f"fooled/{row.objective_text}/{row.target}/{row.explainer}"): row.fsr
            for row in rates[rates["model"] == MANIPULATED].itertuples()
        }
        pictures = _pictures(evaluation)
        for tracker in self._trackers:
            tracker.log(figures, step=_step(tracker, step))
            if tracker.name == "mlflow":
                _log_files(tracker, pictures)
            else:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(pictures, step=_step(tracker, step), **layout)


@contextmanager
def tracking(
    names: Sequence[str], directory: Path, settings: Mapping[str, Any]
) -> Iterator[Tracking]:
    """Track a run with the trackers of these names; see `Tracking`.

    Raises
    ------
    TrompeError
        If there is no such tracker, or it is not installed.
    """
    check(names)
    track = Tracking(names, directory, settings)
    try:
        yield track
    finally:
        track.finish()


def check(names: Sequence[str]) -> None:
    """Refuse trackers that can't be started.

    Raises
    ------
    TrompeError
        If there is no such tracker, or it is not installed.
    """
    for name in names:
        check_name("tracker", name, TRACKERS)
        try:
            import_module(name)
        except ImportError as error:
            raise TrompeError(
                f"{name} is not installed; get it with pip install 'trompe[{name}]'."
            ) from error


def _tracker(name: str, directory: Path) -> Any:
    if name == "tensorboard":
        return TensorBoardTracker(name, directory)
    if name == "wandb":
        return WandBTracker(PROJECT, name=directory.name, dir=str(directory))
    return MLflowTracker(PROJECT, run_name=directory.name)


def _step(tracker: Any, step: int) -> int | None:
    """W&B counts by itself: it drops a step that is not above the last, as the control's are."""
    return None if tracker.name == "wandb" else step


def _pictures(evaluation: Evaluation) -> dict[str, Any]:
    """Images ``[n, H, 2 W, 3]`` of each explainer and class, before and after."""
    gallery = evaluation.gallery
    if gallery is None:
        return {}
    images = gallery.images[:IMAGES].numpy()
    return {
        _plain(f"{evaluation.legend[explainer]['text']}/{target}"): np.stack(
            [
                np.hstack(
                    [
                        overlay(image, gallery.heatmaps[explainer, target, m][row].numpy())
                        for m in (ORIGINAL, MANIPULATED)
                    ]
                )
                for row, image in enumerate(images)
            ]
        )
        for explainer, target, model in gallery.heatmaps
        if model == MANIPULATED
    }


def _log_files(tracker: Any, pictures: Mapping[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        for name, images in pictures.items():
            for number, pixels in enumerate(images, 1):
                stem = name.replace("/", "_").replace(":", "_")
                Image.fromarray(pixels).save(Path(folder, f"{stem}_{number}.png"))
        tracker.log_artifacts(folder, "heatmaps")


def _plain(name: str) -> str:
    """A name that every tracker takes."""
    return re.sub(r"[^\w\-. /:]", "_", name)


def _scalar(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
