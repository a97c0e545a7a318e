"""JSON as anyone may have written it."""

from __future__ import annotations

import json
from typing import Any


def loaded(text: str) -> Any:
    """What a JSON text says.

    Raises
    ------
    ValueError
        If it is no JSON, or nested too deeply.

    Examples
    --------
    >>> loaded('{"weights": [1, 2]}')
    {'weights': [1, 2]}
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
