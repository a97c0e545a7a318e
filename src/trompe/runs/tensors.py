"""A safetensors file that is filled some rows at a time, so that it is never in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trompe.runs.directory import writing

TYPES = {torch.float32: ("F32", 4), torch.int64: ("I64", 8)}


class Rows:
    """Tensors of known shapes in a file, which is made if there is no such one.

    Parameters
    ----------
    path
        The file.
    tensors
        By name, the type (one of `TYPES`) and the shape of each.
    metadata
        What the file says of itself.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        metadata: Mapping[str, str],
    ) -> None:
        self.path = path
        self.places: dict[str, tuple[int, int]] = {}
        told: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        for name, (kind, shape) in tensors.items():
            code, size = TYPES[kind]
            row = size * math.prod(shape[1:])
            self.places[name] = end, row
            told[name] = {
                "dtype": code,
                "shape": shape,
                "data_offsets": [end, end + shape[0] * row],
            }
            end += shape[0] * row
        header = json.dumps(told).encode()
        header += b" " * (-len(header) % 8)
        header = len(header).to_bytes(8, "little") + header
        self.begin = len(header)
        with writing(path), path.open("a+b") as file:
            size = file.tell()
            file.seek(0)
            if size != self.begin + end or file.read(self.begin) != header:
                file.truncate(0)
                file.write(header)
                file.flush()
                os.posix_fallocate(file.fileno(), 0, self.begin + end)

    def put(self, name: str, start: int, rows: Tensor) -> None:
        """Write consecutive rows of a tensor, from ``start`` on."""
        place, size = self.places[name]
        with writing(self.path), self.path.open("r+b") as file:
            file.seek(self.begin + place + start * size)
            file.write(rows.contiguous().numpy().tobytes())
