"""One lie under many settings: every combination of the values that some of them are given."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from trompe import runs
from trompe.base import yaml_text
from trompe.base.messages import check_name
from trompe.errors import TrompeError
from trompe.tuning.job import FoolJob
from trompe.tuning.plan import Planned
from trompe.tuning.recipe import ELSEWHERE

_COMMA = re.compile(r",(?!\w+=)")  # not before an option, as in active:c1=3,c2=8


def axes(given: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``SETTING=VALUE,VALUE`` of each setting that is swept.

    Raises
    ------
    TrompeError
        If a setting is unknown or told twice, or has no values.

    Examples
    --------
    >>> axes(["weight=1,2", "objective=location,active:c1=3,c2=8"])
    {'weight': [1, 2], 'objective': ['location', 'active:c1=3,c2=8']}
    """
    found: dict[str, list[Any]] = {}
    for text in given:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        check_name("setting", name, [n for n in FoolJob.model_fields if n not in ELSEWHERE])
        if name in found or not values:
            raise TrompeError(
                f"--sweep takes SETTING=VALUE,VALUE, each setting once, not '{text}'."
            )
        found[name] = [_value(value) for value in _COMMA.split(values)]
    return found


def points(job: FoolJob, swept: Mapping[str, Sequence[Any]]) -> list[Planned]:
    """A run for each combination of the values; its name says which.

    Raises
    ------
    TrompeError
        If a combination can't be used, or nothing is evaluated.
    """
    if job.eval_data is None:
        raise TrompeError(
            "A sweep compares runs, but nothing is evaluated; give images to evaluate on with "
            "--eval-data."
        )
    common = job.model_dump(mode="json", exclude=ELSEWHERE, exclude_unset=True)
    found = []
    for values in itertools.product(*swept.values()):
        point = dict(zip(swept, values, strict=True))
        name = ",".join(f"{key}={value}" for key, value in point.items())
        planned = Planned(runs.as_file_name(name), "fool", {**common, **point})
        found.append(planned)
        _ = planned.folder  # its settings can be used
    return found


def _value(text: str) -> Any:
    value = yaml_text.loaded(text)
    if isinstance(value, str):  # YAML reads 1e-4 as text
        with suppress(ValueError):
            return float(value)
    return value
