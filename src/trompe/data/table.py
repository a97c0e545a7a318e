"""Pictures in the image column of a table: parquet files, or a dataset of the hub."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from trompe import runs
from trompe.base.identity import fingerprint
from trompe.data.classes import as_numbers
from trompe.data.dataset import Source
from trompe.data.files import UNLABELLED
from trompe.data.reader import opened
from trompe.errors import TrompeError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

IMAGE_COLUMNS = ("image", "img", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category")
MOST_CLASSES = 1_000_000
_CACHES = [
    Path(place).absolute()
    for place in (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE)
]
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


class Table(Source):
    """The rows of a `datasets.Dataset`, memory-mapped, so that few of them are ever in memory.

    Parameters
    ----------
    data : datasets.Dataset
        The table, with an image column and, if `labelled`, a label column.
    parts : sequence of (str, int)
        Names of the table's consecutive parts, and how many rows each has.
    labelled : bool
        If False, labels are not looked at: all rows are of one class without a name.
    folder : Path, optional
        Where the table was found. Pictures that it names, instead of holding them, lie in it or in
        the caches of Hugging Face; others are not opened.

    Raises
    ------
    TrompeError
        If a column isn't found, or a row has no label or one outside the classes.
    """

    def __init__(
        self,
        data: datasets.Dataset,
        parts: Sequence[tuple[str, int]],
        labelled: bool = True,
        folder: Path | None = None,
    ) -> None:
        self._folders = [*_CACHES, *([] if folder is None else [folder.absolute()])]
        self._parts = [name for name, _ in parts]
        self._ends = np.cumsum([rows for _, rows in parts]).tolist()
        if not len(data):
            raise TrompeError(f"{', '.join(self._parts)} has no rows.")
        self._image, *label = _columns(data.features, self._parts[0], labelled)
        with _translated(f"The column {self._image!r} of {self._parts[0]}"):
            plain = data.with_format(None).select_columns(self._image)  # others aren't decoded
            self._data = plain.cast_column(self._image, datasets.Image(decode=False))
        self.classes, self.labels = UNLABELLED, torch.zeros(len(data), dtype=torch.int64)
        for name in label:
            self.classes, self.labels = self._labelled(data, name)

    def open(self, row: int) -> Image.Image:
        """Return the picture of a row."""
        cell = self._data[row][self._image]
        if cell is None:
            raise ValueError("the cell is empty")
        return opened(self._file(cell["path"]) if cell["bytes"] is None else BytesIO(cell["bytes"]))

    def content(self, row: int) -> Any:
        """Return the encoded picture of a row, or its file."""
        cell = self._data[row][self._image]
        return cell and (self._file(cell["path"]) if cell["bytes"] is None else cell["bytes"])

    def name(self, row: int) -> str:
        """Return the name of the row's part of the table, and its place there from 0."""
        part = bisect_right(self._ends, row)
        start = self._ends[part - 1] if part else 0
        return f"{self._parts[part]}, row {row - start}"

    def _file(self, path: str | None) -> Path:
        """A picture that the table names; whoever wrote it does not choose what is read."""
        if path is None:
            raise ValueError("the cell is empty")
        whole = Path(os.path.normpath(self._folders[-1] / path))
        if not any(whole.is_relative_to(folder) for folder in self._folders):
            raise TrompeError(f"it names '{path}', a file elsewhere; put the picture itself in")
        return whole

    def _labelled(self, data: datasets.Dataset, name: str) -> tuple[tuple[str, ...], Tensor]:
        """Return class names and the class of every row."""
        column, feature = data.data.column(name), data.features[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        is_text = any(is_kind(kind) for is_kind in _TEXT)
        if not (is_text or pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise TrompeError(
                f"In the column {name!r}, the labels of {self._parts[0]} are {kind}; expected "
                "whole numbers or names."
            )
        missing = np.asarray(column.is_null())
        values = np.asarray(column.drop_null())
        names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
        if is_text:
            texts, place = np.unique(values.astype(str), return_inverse=True)
            numbers = as_numbers(texts.tolist())
            names = tuple(texts.tolist()) if numbers is None else None
            values = place if numbers is None else np.array(numbers, np.int64)[place]
        labels = np.full(len(column), -1, np.int64)
        labels[~missing] = values
        self._refuse(labels < 0, "no label")
        if names is None:
            self._refuse(labels > MOST_CLASSES, f"a label above {MOST_CLASSES:,}")
            names = tuple(map(str, range(labels.max(initial=-1) + 1)))
        self._refuse(labels >= len(names), f"a label above {len(names) - 1}, the last named class")
        return names, torch.from_numpy(labels)

    def _refuse(self, wrong: NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            first = self.name(int(wrong.argmax()))
            raise TrompeError(
                f"{wrong.sum()} of {len(wrong)} rows have {what} (the first: {first}); "
                "correct them or take them out."
            )


def read_parquet(files: Sequence[Path], labelled: bool = True) -> Table:
    """Return the rows of parquet files in the Hugging Face image layout, one after another.

    `datasets` keeps a memory-mappable copy of the two columns in its cache (``HF_HOME``) and
    takes it from there the next time.

    Raises
    ------
    TrompeError
        If a file can't be read, or the files disagree about their classes.
    """
    heads = {file: head for file in files if (head := _head(file)).metadata.num_rows}
    if not heads:
        raise TrompeError(f"{', '.join(file.name for file in files)} has no rows.")
    first, *others = heads
    features = {f: datasets.Features.from_arrow_schema(h.schema_arrow) for f, h in heads.items()}
    image, *labels = _columns(features[first], first.name, labelled)
    for file, label in product(others, labels):
        if features[file].get(label) != features[first][label]:
            raise TrompeError(
                f"{file.name} has other classes in its column {label!r} than {first.name}; "
                "load files of one dataset only."
            )
    cache = _cache(heads)
    with _translated(f"{first.parent}"):
        for file in () if Path(cache).exists() else heads:
            runs.check_bounded(file, [image, *labels])
        data = datasets.Dataset.from_parquet(
            [*map(str, heads)], columns=[image, *labels], cache_dir=cache
        )
    parts = [(file.name, head.metadata.num_rows) for file, head in heads.items()]
    return Table(data, parts, labelled, first.parent)


def read_hub(name: str, split: str, labelled: bool = True) -> Table:
    """Return a split of a dataset of the Hugging Face hub (or of a local one), downloading it.

    Raises
    ------
    TrompeError
        If there is no such dataset or split, or it can't be reached.
    """
    files = sorted(file for file in Path(name).rglob("*") if file.is_file())
    with _translated(f"{name}:{split}"):
        data = datasets.load_dataset(name, split=split, cache_dir=_cache(files) if files else None)
    return Table(data, [(f"{name}:{split}", len(data))], labelled, Path(name) if files else None)


def read_saved(folder: Path, split: str | None = None, labelled: bool = True) -> Table:
    """Return a dataset that ``save_to_disk`` wrote, or a split of it.

    Raises
    ------
    TrompeError
        If it can't be read, or has no such split, or several and none is named.
    """
    with _translated(str(folder)):
        data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        if split is None and len(data) == 1:
            split = next(iter(data))
        if split not in data:
            raise TrompeError(
                f"{folder} holds the splits {', '.join(data)}; name one of them, such as "
                f"{folder / next(iter(data))}."
            )
        data = data[split]
    elif split is not None:
        raise TrompeError(f"{folder} holds one dataset without splits; leave out ':{split}'.")
    name = folder.name if split is None else f"{folder.name}:{split}"
    return Table(data, [(name, len(data))], labelled, folder)


def _cache(files: Iterable[Path]) -> str:
    """Where `datasets` keeps its copy of files of this content; it goes by their time stamps."""
    return str(Path(datasets.config.HF_DATASETS_CACHE, "trompe", fingerprint(*files)))


def _head(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except Exception as error:
        raise TrompeError(f"{file} can't be read as parquet ({error}).") from error


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Keep `datasets` from printing progress, and turn its errors into one sentence."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        text = re.sub(r"\s+", " ", str(cause))
        advice = "; check the name and the connection" if "reach" in text else ""
        raise TrompeError(f"{what} can't be loaded ({text}){advice}.") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _columns(features: datasets.Features, origin: str, labelled: bool) -> list[str]:
    """Return the names of the image column and, if `labelled`, of the label column."""
    found = [_column(features, IMAGE_COLUMNS, datasets.Image, f"{origin} has no image column")]
    if labelled:
        complaint = f"{origin} has no label column"
        found.append(_column(features, LABEL_COLUMNS, datasets.ClassLabel, complaint))
    return found


def _column(features: datasets.Features, names: Sequence[str], kind: type, complaint: str) -> str:
    of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
    if found := [name for name in names if name in features]:
        return str(found[0])
    if len(of_kind) == 1:
        return str(of_kind[0])
    raise TrompeError(
        f"{complaint} among {', '.join(features)}; name it one of {', '.join(names)}."
    )
