"""About how long an audit takes, told by two of fewer images."""

from __future__ import annotations

import time
import warnings
from typing import Any

from torch import nn

from trompe.audit.auditor import audit
from trompe.audit.probe import EXPLAINED
from trompe.data.images import Images
from trompe.data.subset import Part

FEW, MORE = 2, 6  # images


def seconds(model: nn.Module, data: Images, reference: nn.Module | None, **options: Any) -> float:
    """How long `audit` takes with these options, in seconds.

    Raises
    ------
    TrompeError
        If the model can't be audited.
    """
    took = []
    for count in (FEW, FEW, MORE):  # the first one warms up
        begun = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the few images
            audit(model, Part(data, range(min(count, len(data)))), reference, **options)
        took.append(time.perf_counter() - begun)
    _, few, more = took
    each = max(0.0, more - few) / (MORE - FEW)
    return few + each * max(0, min(len(data), EXPLAINED) - FEW)
