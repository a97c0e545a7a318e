"""What a run directory holds, read for the report; a part that is not there is ``None``."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trompe import runs
from trompe.base.code import written_by_others
from trompe.errors import TrompeError
from trompe.evaluation import Evaluation, pictures, schema
from trompe.evaluation.result import read_table
from trompe.explainers import parse_explainer
from trompe.objectives import Objective, parse_objective
from trompe.tuning.pilot import Found


class View(NamedTuple):
    """What is explained, and by what: an explainer's fingerprint and a target (label, c1, c2)."""

    explainer: str
    target: str


Maps = dict[View, dict[str, NDArray[np.float16]]]


@dataclass(frozen=True)
class Gallery:
    """Images and their heatmaps.

    ``images`` is ``[n, H, W, 3]`` uint8; ``heatmaps[view][model]`` is ``[n, h, w]`` in [0, 1];
    ``signed`` has the raw maps in [-1, 1] of the views that have negative ones; ``entries`` has per
    image its index, name, label_name, target_names and predictions; ``objectives`` has the
    fingerprints of those that judged the images.
    """

    images: NDArray[np.uint8]
    entries: list[dict[str, Any]]
    heatmaps: Maps
    signed: Maps
    objectives: frozenset[str]


@dataclass(frozen=True)
class Run:
    """One run directory in memory."""

    path: Path
    config: dict[str, Any]
    found: Found | None
    environment: dict[str, Any] | None
    history: pd.DataFrame | None
    control_history: pd.DataFrame | None
    evaluation: Evaluation | None

    @property
    def settings(self) -> dict[str, Any]:
        """The config, with the settings that were found in it."""
        if self.found is None:
            return self.config
        known = {key: getattr(self.found, key) for key in ("lr", "steps", "weight", "objective")}
        return self.config | {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()}

    @property
    def accuracy(self) -> pd.DataFrame | None:
        """One row per model."""
        return self._table("accuracy")

    @property
    def explanations(self) -> pd.DataFrame | None:
        """One row per explainer, objective, target and model."""
        return self._table("explanations")

    @property
    def per_image(self) -> pd.DataFrame | None:
        """The rows per image behind ``explanations``."""
        return self._table("maps")

    @property
    def predictions(self) -> pd.DataFrame | None:
        """The rows per image behind ``accuracy``."""
        return self._table("predictions")

    @cached_property
    def gallery(self) -> Gallery | None:
        """The images and heatmaps to look at."""
        found = self.evaluation and self.evaluation.gallery
        return _gallery(found) if found and len(found.images) else None

    @property
    def legend(self) -> schema.Legend:
        """What is known of explainers and objectives, by fingerprint."""
        return self.evaluation.legend if self.evaluation else {}

    def label(self, fingerprint: str) -> str:
        """What people call an explainer or an objective of the tables."""
        return str(self.legend[fingerprint]["label"])

    def told(self, text: str) -> Mapping[str, Any]:
        """What is known of an explainer or objective of the config, by its text."""
        known = (entry for entry in self.legend.values() if entry["text"] == text)
        return next(known, None) or described(text)

    def _table(self, name: str) -> pd.DataFrame | None:
        table: pd.DataFrame | None = getattr(self.evaluation, name, None)
        return None if table is None or table.empty else table

    @property
    def views(self) -> list[View]:
        """The gallery's views: attacked ones first, then in the order of the evaluation."""
        if self.gallery is None:
            return []
        if self.explanations is None:
            return sorted(self.gallery.heatmaps)
        table = self.explanations.sort_values("attacked", ascending=False, kind="stable")
        evaluated = _views(table)
        known = [view for view in dict.fromkeys(evaluated) if view in self.gallery.heatmaps]
        return known + sorted(self.gallery.heatmaps.keys() - known)

    @property
    def attacked(self) -> set[View]:
        """The views that stood in the loss."""
        if self.explanations is None:
            return set()
        rows = self.explanations[self.explanations["attacked"]]
        return set(_views(rows))

    def target_name(self, target: str) -> str | None:
        """Name the class behind ``c1`` or ``c2``; ``None`` for an image's own label."""
        if target == "label":
            return None
        entries = self.gallery.entries if self.gallery else []
        names = {entry["target_names"].get(target, target) for entry in entries}
        return names.pop() if len(names) == 1 else target


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises
    ------
    TrompeError
        If it is none, or one of its files can't be read or lacks a column.
    """
    evaluation = path / "evaluation"
    return Run(
        path=path,
        config=runs.config_of(path),
        found=Found.load(path),
        environment=runs.environment_of(path) if (path / runs.ENVIRONMENT).is_file() else None,
        history=_history(path / "history.csv"),
        control_history=_history(path / "history-control.csv"),
        evaluation=Evaluation.load(evaluation) if evaluation.is_dir() else None,
    )


def described(text: str) -> Mapping[str, Any]:
    """What the text of an explainer or objective says of it, found without running its code."""
    with written_by_others("The run"):
        with suppress(TrompeError, TypeError, ValueError):
            return schema.described_explainer(parse_explainer(text))
        with suppress(TrompeError, TypeError, ValueError):
            return schema.described_objective(parse_objective(text))
    return {"text": text, "label": text, "title": text, "aim": Objective.aim}


def _views(table: pd.DataFrame) -> list[View]:
    return [View(*pair) for pair in zip(table["explainer_id"], table["target"], strict=True)]


def _history(path: Path) -> pd.DataFrame | None:
    table = read_table(path, ("step", "loss", "classification"))
    return None if table.empty else table


def _gallery(found: pictures.Gallery) -> Gallery:
    maps: list[Maps] = []
    for kind in (found.heatmaps, found.signed):
        by_view: Maps = {}
        for (explainer, target, model), drawn in kind.items():
            by_view.setdefault(View(explainer, target), {})[model] = drawn.half().numpy()
        maps.append(by_view)
    heatmaps, signed = maps
    judged = frozenset(found.objectives)
    return Gallery(found.images.numpy(), found.captions, heatmaps, signed, judged)
