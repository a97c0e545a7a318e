"""What `evaluate` found, as tables; written to a directory and read from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError

from trompe import runs
from trompe.base import json_text
from trompe.data.triggers import NO_TRIGGER
from trompe.errors import TrompeError
from trompe.evaluation import notes, schema, shown
from trompe.evaluation.pictures import Gallery

LEGEND = "legend.json"
_FILES = {
    "accuracy": ("accuracy.csv", schema.ACCURACY),
    "explanations": ("explanations.csv", schema.EXPLANATIONS),
    "predictions": ("predictions.parquet", schema.PREDICTIONS),
    "maps": ("explanations.parquet", schema.MAPS),
    "triggers": ("triggers.csv", schema.TRIGGERS),
    "triggered": ("triggers.parquet", schema.TRIGGERED),
}


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes
    ----------
    accuracy
        One row per model: top-1, top-5 and agreement with the original's predictions, each a
        share with its 95 % interval (Wilson's).
    explanations
        One row per explainer, objective, target class and model: fooling success rate (FSR) with
        its interval, beside it that of the original judged against itself and that of the control;
        mean, median and quantiles of the test loss, mean rank correlation with the original's maps,
        shares of maps that are empty or not finite. See `schema.EXPLANATIONS`.
    predictions, maps
        The rows per image behind the two tables.
    triggers
        One row per trigger and model: accuracy, agreement with what the original predicts without
        the trigger, and attack success rate, each with its interval.
    triggered
        The rows per image behind it.
    gallery
        Images and heatmaps to look at.
    galleries
        The same images with each trigger in them, by its fingerprint.
    legend
        What the explainers and objectives are called and what they mean, by fingerprint.
    images
        The fingerprint of the data, as ``"data"``, and that of the composites of each active
        objective, by the objective's own.
    """

    accuracy: pd.DataFrame
    explanations: pd.DataFrame
    predictions: pd.DataFrame
    maps: pd.DataFrame
    gallery: Gallery | None
    legend: schema.Legend
    images: Mapping[str, str] = field(default_factory=dict)
    triggers: pd.DataFrame = field(default_factory=lambda: _empty(schema.TRIGGERS))
    triggered: pd.DataFrame = field(default_factory=lambda: _empty(schema.TRIGGERED))
    galleries: Mapping[str, Gallery] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What to know before the numbers are believed, in sentences."""
        return [
            *notes.not_finite(self.explanations, self.predictions, self.legend),
            *notes.not_counted(self.explanations, self.legend),
            *notes.fooled_untouched(self.explanations, self.legend),
            *notes.at_chance(self.accuracy, self.predictions),
            *notes.the_same(self.accuracy, self.explanations),
        ]

    def __repr__(self) -> str:
        return shown.text(self.accuracy, self.explanations)

    def _repr_html_(self) -> str:
        return shown.html(self.accuracy, self.explanations, self.gallery, self.notes)

    def save(self, directory: Path) -> None:
        """Write the tables as CSV, the rows as parquet and the gallery as safetensors."""
        with runs.replacing(directory) as new:
            new.mkdir()
            written = {"version": schema.VERSION, "things": self.legend, "images": self.images}
            (new / LEGEND).write_text(json.dumps(written, indent=2, ensure_ascii=False))
            for attribute, (name, _) in _FILES.items():
                table: pd.DataFrame = getattr(self, attribute)
                if table.empty and attribute in ("triggers", "triggered"):
                    continue
                if name.endswith(".csv"):
                    runs.write_csv(table, new / name)
                else:
                    table.to_parquet(new / name, index=False)
            if self.gallery is not None:
                self.gallery.save(new / "gallery.safetensors")
            for trigger, gallery in self.galleries.items():
                gallery.save(new / f"gallery-{trigger}.safetensors")

    @classmethod
    def load(cls, directory: Path) -> Evaluation:
        """Read what `save` wrote; a file that is not there leaves an empty table.

        Raises
        ------
        TrompeError
            If there is none, another version of trompe wrote it, or a file can't be read or lacks
            a column.
        """
        known = _legend(runs.contained(directory) / LEGEND)
        old = known["version"] == schema.BEFORE_TRIGGERS
        tables = {
            key: (_without_triggers if old else read_table)(directory / name, columns)
            for key, (name, columns) in _FILES.items()
        }
        path = directory / "gallery.safetensors"
        gallery = _read(path, Gallery.load) if path.is_file() else None
        things, images = known["things"], known.get("images", {})
        galleries = {
            path.stem.removeprefix("gallery-"): _read(path, Gallery.load)
            for path in sorted(directory.glob("gallery-*.safetensors"))
        }
        return cls(**tables, gallery=gallery, legend=things, images=images, galleries=galleries)


def _empty(columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=list(columns))


def _legend(path: Path) -> dict[str, Any]:
    found = _read(path, lambda p: json_text.loaded(p.read_text())) if path.is_file() else {}
    read = (schema.VERSION, schema.BEFORE_TRIGGERS)
    things = found.get("things") if isinstance(found, dict) else None
    if not isinstance(things, dict) or found.get("version") not in read:
        raise TrompeError(
            f"{path.parent} was written by another version of trompe, whose tables this one does "
            "not read; evaluate the run again."
        )
    for told in things.values():
        if not isinstance(told, dict) or not all(isinstance(text, str) for text in told.values()):
            raise TrompeError(f"{path} holds other things than text; evaluate the run again.")
    return found


def _without_triggers(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table that was written before there were triggers."""
    added = [column for column in columns if column in schema.WITH_TRIGGERS]
    table = read_table(path, [column for column in columns if column not in added])
    names = dict.fromkeys(("trigger", "trigger_id"), NO_TRIGGER)
    return table.assign(**{column: names.get(column, math.nan) for column in added})


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table of a run, empty if there is no such file.

    Raises
    ------
    TrompeError
        If it can't be read or lacks a column.
    """
    reader = runs.read_csv if path.suffix == ".csv" else runs.read_parquet
    table = _read(path, reader) if path.is_file() else pd.DataFrame()
    if table.empty:
        return _empty(columns)
    missing = [column for column in columns if column not in table]
    if missing:
        raise TrompeError(f"{path} lacks the columns {', '.join(missing)}; make it again.")
    return table


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (SafetensorError, KeyError, TypeError, ValueError, OSError, MemoryError) as error:
        raise TrompeError(f"{path} can't be read ({error}); make it again.") from error
