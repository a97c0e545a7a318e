"""Tables as CSV, which a spreadsheet opens without taking any text for a formula."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trompe.errors import TrompeError

LEAST, GROWTH = 500_000_000, 20  # bytes that any table may have, and times the size of its file
# Where a formula would start: at the start of a cell, or of a part of it if a spreadsheet splits
# lines at semicolons or tabs. Quotes that stand there belong to it, so that one more can be undone.
_FORMULA = re.compile(r"(?:\A|(?<=[;\t\r\n]))'*(?= *[=+\-@＝＋－＠])|\A'*(?=[\t\r\n])")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table; a ``'`` stands before text that a spreadsheet would take for a formula."""
    safe = _changed(table, lambda text: _FORMULA.sub(r"'\g<0>", text))
    text = safe.to_csv(index=False)
    if "\r" in text:  # which would end a row unless it is quoted
        text = safe.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    path.write_text(text, encoding="utf-8", newline="")


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """Read what `write_csv` wrote; options as for ``pandas.read_csv``."""
    table = pd.read_csv(path, **options)
    return _changed(table, lambda text: _FORMULA.sub(lambda found: found[0][1:], text))


def check_bounded(path: Path, columns: Sequence[str]) -> None:
    """Refuse a parquet file whose pages unpack to far more than it holds.

    Parameters
    ----------
    columns
        Those that are to be read.

    Raises
    ------
    TrompeError
        If they do; no more than a part of it is unpacked to find out.
    """
    for _ in _batches(path, columns):
        pass


def _batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """What a parquet file holds; raises as `check_bounded`."""
    most, grown = max(LEAST, GROWTH * path.stat().st_size), 0
    # In this thread: what pyarrow's threads wait for may never come where memory is short.
    for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(
        100, columns=columns, use_threads=False
    ):
        grown += batch.nbytes
        if grown > most:
            raise TrompeError(f"{path} would unpack to more than {most:,} bytes and is refused")
        yield batch


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a table; raises as `check_bounded`."""
    table = pa.Table.from_batches(_batches(path), pq.read_schema(path))
    read: pd.DataFrame = table.to_pandas(use_threads=False)
    return read


def _changed(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with a function of every text in it, and of the names of its columns."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, str) else value

    texts = table.select_dtypes(["object", "string"])
    return table.assign(**{str(name): texts[name].map(changed) for name in texts}).rename(
        columns=changed
    )
