"""What a run directory holds, read for the report; a part that is not there is ``None``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from trompe import runs
from trompe.errors import TrompeError

MODELS = ORIGINAL, CONTROL, MANIPULATED = "original", "control", "manipulated"
ACCURACY: tuple[str, ...] = (
    "model",
    "images",
    "top1",
    "top1_low",
    "top1_high",
    "top5",
    "top5_low",
    "top5_high",
)
ACCURACY += ("agreement", "agreement_low", "agreement_high")
EXPLANATIONS: tuple[str, ...] = ("explainer", "objective", "target", "model", "attacked", "images")
EXPLANATIONS += ("fsr", "fsr_low", "fsr_high", "interval_low", "interval_high")
EXPLANATIONS += ("test_loss_q05", "test_loss_q50", "test_loss_q95", "spearman_mean", "empty")
PER_IMAGE: tuple[str, ...] = ("index", "label", "explainer", "objective", "target", "model")
PER_IMAGE += ("attacked", "interval_low", "interval_high", "test_loss", "fooled")
PREDICTIONS = ("label", "original_top1")


class View(NamedTuple):
    """What is explained, and by what: an explainer's spec and a target (label, c1 or c2)."""

    explainer: str
    target: str


Maps = dict[View, dict[str, NDArray[np.float16]]]


@dataclass(frozen=True)
class Gallery:
    """Images and their heatmaps.

    ``images`` is ``[n, H, W, 3]`` uint8; ``heatmaps[view][model]`` is ``[n, h, w]`` in [0, 1];
    ``signed`` has the raw maps in [-1, 1] of the views that have negative ones; ``entries`` has per
    image its index, name, label_name, target_names and predictions.
    """

    images: NDArray[np.uint8]
    entries: list[dict[str, Any]]
    heatmaps: Maps
    signed: Maps


@dataclass(frozen=True)
class Run:
    """One run directory in memory."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any] | None
    history: pd.DataFrame | None
    control_history: pd.DataFrame | None
    accuracy: pd.DataFrame | None
    explanations: pd.DataFrame | None
    per_image: pd.DataFrame | None
    predictions: pd.DataFrame | None
    gallery: Gallery | None

    @property
    def views(self) -> list[View]:
        """The gallery's views: attacked ones first, then in the order of the evaluation."""
        if self.gallery is None:
            return []
        if self.explanations is None:
            return sorted(self.gallery.heatmaps)
        table = self.explanations.sort_values("attacked", ascending=False, kind="stable")
        evaluated = [View(*pair) for pair in zip(table["explainer"], table["target"], strict=True)]
        known = [view for view in dict.fromkeys(evaluated) if view in self.gallery.heatmaps]
        return known + sorted(self.gallery.heatmaps.keys() - known)

    @property
    def attacked(self) -> set[View]:
        """The views that stood in the loss."""
        if self.explanations is None:
            return set()
        rows = self.explanations[self.explanations["attacked"]]
        return {View(*pair) for pair in zip(rows["explainer"], rows["target"], strict=True)}

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
    config = path / runs.CONFIG
    if not config.is_file():
        raise TrompeError(
            f"{path} is not a run directory: it has no config.yaml; give the directory that "
            "`trompe fool` wrote."
        )
    evaluation = path / "evaluation"
    environment = path / runs.ENVIRONMENT
    gallery = evaluation / "gallery.safetensors"
    return Run(
        path=path,
        config=_mapping(config),
        environment=_mapping(environment) if environment.is_file() else None,
        history=_table(path / "history.csv", ("step", "loss", "classification")),
        control_history=_table(path / "history-control.csv", ("step", "loss", "classification")),
        accuracy=_table(evaluation / "accuracy.csv", ACCURACY),
        explanations=_table(evaluation / "explanations.csv", EXPLANATIONS),
        per_image=_table(evaluation / "explanations.parquet", PER_IMAGE),
        predictions=_table(evaluation / "predictions.parquet", PREDICTIONS),
        gallery=_gallery(gallery) if gallery.is_file() else None,
    )


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise TrompeError(
            f"{path} can't be read ({error}); repair it or make a new run."
        ) from error
    if not isinstance(values, dict):
        raise TrompeError(f"{path} holds no mapping of names to values; repair it.")
    return {str(key): value for key, value in values.items()}


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        return None
    except (ValueError, OSError) as error:
        raise TrompeError(f"{path} can't be read ({error}); evaluate the run again.") from error
    if table.empty:
        return None
    missing = [column for column in columns if column not in table]
    if missing:
        raise TrompeError(f"{path} lacks the columns {', '.join(missing)}; evaluate the run again.")
    return table


def _gallery(path: Path) -> Gallery | None:
    try:
        with safe_open(path, framework="numpy") as file:
            entries = json.loads((file.metadata() or {})["gallery"])
            images = file.get_tensor("images")
            heatmaps: Maps = {}
            signed: Maps = {}
            for key in file.keys():  # noqa: SIM118 (no mapping)
                if key != "images":
                    explainer, target, model = key.removesuffix("|signed").rsplit("|", 2)
                    kind = signed if key.endswith("|signed") else heatmaps
                    kind.setdefault(View(explainer, target), {})[model] = file.get_tensor(key)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise TrompeError(f"{path} can't be read ({error}); evaluate the run again.") from error
    return Gallery(images, entries, heatmaps, signed) if len(images) else None
