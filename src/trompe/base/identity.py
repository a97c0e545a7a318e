"""What a thing is: a digest of all of it that decides a result. Text is for people."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property, partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LENGTH = 16  # hexadecimal digits of a fingerprint


class Identified:
    """Equal to what has the same fingerprint: the same class, fields, tensors, file contents.

    Subclasses are compared so even where they are dataclasses, which would compare fields.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__eq__ = Identified.__eq__  # type: ignore[method-assign]
        cls.__hash__ = Identified.__hash__  # type: ignore[method-assign]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of `identity`."""
        return fingerprint(self.identity())

    def identity(self) -> Any:
        """What tells this from others; by default the class and all fields of a dataclass."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return _qualified(type(self)), own

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identified):
            return NotImplemented
        return self is other or self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


class Lazily:
    """The list of what ``make`` gives for each of ``keys``, of which one item is held at a time."""

    def __init__(self, make: Callable[[Any], Any], keys: Sequence[Any]) -> None:
        self.make, self.keys = make, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self.keys)


def fingerprint(*things: Any) -> str:
    """A digest of all that ``things`` hold, the same in every process.

    Parameters
    ----------
    things
        Numbers, text, collections, tensors and arrays (type, shape and values), modules (their
        state), dataclasses, functions (their code), paths (the contents of the file), and objects
        with a ``fingerprint`` of their own.

    Examples
    --------
    >>> fingerprint({"a": 1, "b": torch.zeros(2)}) == fingerprint({"b": torch.zeros(2), "a": 1})
    True
    >>> fingerprint(torch.zeros(2)) == fingerprint(torch.ones(2))
    False
    """
    digest = hashlib.blake2b(digest_size=LENGTH // 2)
    for part in _parts(things):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """A digest of what a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _parts(thing: Any) -> Iterator[bytes]:
    """The bytes of a thing, each kind of thing marked by a letter."""
    own = getattr(thing, "fingerprint", None)
    if isinstance(own, str):
        yield b"F" + own.encode()
    elif thing is None or isinstance(thing, bool | int | float | complex | str | np.generic):
        yield b"V" + repr(thing).encode("utf-8", "surrogatepass")
    elif isinstance(thing, bytes):
        yield b"B" + thing
    elif isinstance(thing, Tensor):
        yield from _tensor(thing)
    elif isinstance(thing, np.ndarray):
        yield f"A{thing.dtype}{thing.shape}".encode()
        yield np.ascontiguousarray(thing).tobytes()
    elif isinstance(thing, Path):
        yield b"P" + (file_digest(thing) if thing.is_file() else str(thing)).encode()
    elif isinstance(thing, nn.Module):
        yield b"M" + _qualified(type(thing)).encode()
        for name, value in thing.state_dict().items():
            yield b"K" + name.encode()
            yield from _parts(value)
    else:
        yield from _composed(thing)


def _composed(thing: Any) -> Iterator[bytes]:
    if isinstance(thing, Mapping):
        yield f"D{len(thing)}".encode()
        for key, value in sorted(thing.items(), key=lambda item: str(item[0])):
            yield from _parts(key)
            yield from _parts(value)
    elif isinstance(thing, list | tuple | set | frozenset | range | Lazily):
        ordered = sorted(map(fingerprint, thing)) if isinstance(thing, set | frozenset) else thing
        yield f"L{len(thing)}".encode()
        for item in ordered:
            yield from _parts(item)
    elif isinstance(thing, enum.Enum):
        yield b"E" + str(thing).encode()
    elif isinstance(thing, type | BuiltinFunctionType):
        yield b"T" + _qualified(thing).encode()
    elif isinstance(thing, partial):
        yield b"C"
        yield from _parts((thing.func, thing.args, thing.keywords))
    elif isinstance(thing, MethodType):
        yield b"C"
        yield from _parts((thing.__self__, thing.__func__))
    elif isinstance(thing, FunctionType):
        yield from _function(thing)
    elif isinstance(thing, torch.dtype | torch.device | torch.Size):
        yield b"V" + str(thing).encode()
    elif is_dataclass(thing):
        yield b"O" + _qualified(type(thing)).encode()
        yield from _parts({f.name: getattr(thing, f.name) for f in fields(thing)})
    else:
        yield b"O" + _qualified(type(thing)).encode()
        yield from _parts(getattr(thing, "__dict__", None) or {})


def _tensor(tensor: Tensor) -> Iterator[bytes]:
    plain = tensor.detach().cpu()
    if plain.is_quantized or plain.layout != torch.strided:
        plain = plain.dequantize() if plain.is_quantized else plain.to_dense()
    yield f"A{plain.dtype}{tuple(plain.shape)}".encode()
    yield plain.resolve_conj().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _function(function: FunctionType) -> Iterator[bytes]:
    code = function.__code__
    yield b"C" + _qualified(function).encode()
    yield code.co_code
    constants = [c for c in code.co_consts if isinstance(c, int | float | str | bytes)]
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    yield from _parts([constants, code.co_names, function.__defaults__, cells])


def _qualified(thing: type | Callable[..., Any]) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
