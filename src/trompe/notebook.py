"""How results show themselves in a notebook: small pictures and tables, as HTML."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO

import pandas as pd
from PIL import Image

from trompe.colour import Pixels

SIDE = 112  # of a picture, in pixels
MOST_ROWS = 8


def pictures(heads: Sequence[str], rows: Iterable[Sequence[Pixels]]) -> str:
    """Rows of pictures ``[H, W, 3]`` of uint8 under their headings."""
    return _table(heads, ([_picture(one) for one in row] for row in rows))


def table(rows: pd.DataFrame) -> str:
    """The first rows of a table, and how many there are more."""
    shown = ([escape(_cell(value)) for value in row] for row in rows[:MOST_ROWS].to_numpy(object))
    more = f"<p>{len(rows) - MOST_ROWS} rows more</p>" if len(rows) > MOST_ROWS else ""
    return _table([str(column) for column in rows.columns], shown) + more


def paragraph(text: str) -> str:
    """A text of its own."""
    return f"<p>{escape(text)}</p>"


def percent(share: float) -> str:
    """A share in percent, a missing one as a dash."""
    return "–" if share != share else f"{100 * share:.1f} %"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _picture(pixels: Pixels) -> str:
    image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    written = BytesIO()
    image.save(written, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{b64encode(written.getvalue()).decode()}">'
