"""Weights: read safely, fitted to a model with every misfit named, written atomically."""

from __future__ import annotations

import logging
import re
import warnings
import zipfile
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet, GoogLeNet, Inception3

from trompe import runs
from trompe.base.messages import first_sentence, listed
from trompe.errors import TrompeError

SUFFIXES = (".safetensors", ".pth", ".pt")
_NESTS = ("state_dict", "model_state_dict", "model")
_EXTRA = "_extra_state"
_MAPPINGS = 1000

_log = logging.getLogger(__name__)


def read_weights(path: Path) -> dict[str, Any]:
    """Return the state dict in a ``.safetensors``, ``.pth`` or ``.pt`` file, on the CPU.

    Nothing in the file is executed. A state dict nested in others is found: that under
    ``state_dict``, ``model_state_dict`` or ``model``, or the only one.

    Raises
    ------
    TrompeError
        If there is no such file, or it holds something else than named tensors.
    """
    if not path.is_file():
        raise TrompeError(f"There is no weights file {path}; check the path.")
    content = plain_content(path)
    return content if path.suffix == ".safetensors" else _state_dict(content, path)


def plain_content(path: Path) -> Any:
    """What a file of safetensors or of ``torch.save`` holds, on the CPU; nothing in it is executed.

    Raises
    ------
    TrompeError
        If it holds something else than tensors and plain values, or would be larger than it is.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        require_uncompressed(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"besides tensors it holds {blocked[1]}, which reading would run"
            if blocked
            else f"it cannot be read as tensors ({type(error).__name__}: {first_sentence(error)})"
        )
        raise TrompeError(
            f"{path} is refused: {reason}; nothing in it was executed. Give the weights as "
            "safetensors, or as a saved model.state_dict()."
        ) from error


def fit_weights(
    model: nn.Module, state: Mapping[str, Any], origin: str, *, new_head: bool = False
) -> None:
    """Copy `state` into `model`, in the model's precision; every key must fit.

    A prefix comes off that wrappers have put before the names (``module.``, ``model.``, ``ema.``,
    nested ones): the one under which most of the model is found. DenseNet's keys as torchvision
    once named them are translated; the auxiliary heads of GoogLeNet and Inception are left out.
    Extra state is taken where there is some, else the model keeps its own.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    state : mapping of str to Tensor
        The weights.
    origin : str
        Where they are from, for messages.
    new_head : bool
        If nothing but the number of classes differs, keep the model's own last layer.

    Raises
    ------
    TrompeError
        If keys are missing, unexpected or of another shape, or if a weight is NaN or infinite.
    """
    expected = _tensors(model.state_dict())
    sound = {k for k, v in expected.items() if v.isfinite().all()}
    state = _translated(_unwrapped(state, expected, origin), model)
    given = _tensors(state)
    reshaped = [k for k, v in given.items() if k in expected and v.shape != expected[k].shape]
    fitting = OrderedDict((k, v) for k, v in state.items() if k not in reshaped)
    # MNASNet refuses a state dict without a version, and safetensors hold none.
    fitting._metadata = {"": {"version": model._version}}  # type: ignore[attr-defined]
    missing, unexpected = model.load_state_dict(fitting, strict=False)
    filled = {expected[k].data_ptr() for k in fitting if k in expected}
    missing = [
        k
        for k in missing
        if k in expected and k not in reshaped and expected[k].data_ptr() not in filled
    ]

    classes = _classes(reshaped, given, expected)
    if missing or unexpected or (reshaped and classes is None):
        misfits = (
            listed("missing", (f"{k} {_shape(expected[k])}" for k in missing)),
            listed("unexpected", (f"{k} {_shape(state[k])}" for k in unexpected)),
            listed(
                "of another shape",
                (f"{k} {_shape(given[k])} instead of {_shape(expected[k])}" for k in reshaped),
            ),
        )
        raise TrompeError(
            f"{origin} does not fit {type(model).__name__}: {'; '.join(filter(None, misfits))}. "
            "Name the model that these weights belong to."
        )
    if reshaped and not new_head:
        raise TrompeError(
            f"{origin} fits {type(model).__name__} except for the number of classes: "
            f"pass num_classes={classes} / --num-classes {classes}."
        )
    if reshaped:
        _log.info("%s: loaded, but for a new last layer (%s)", origin, ", ".join(reshaped))
    broken = {k: v for k, v in expected.items() if k in sound and not v.isfinite().all()}
    if broken:
        kinds = (
            listed("NaN", (k for k, v in broken.items() if v.isnan().any())),
            listed("infinite", (k for k, v in broken.items() if v.isinf().any())),
        )
        raise TrompeError(
            f"{origin} holds weights that are {' and '.join(filter(None, kinds))}; give other "
            "weights."
        )


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the model's parameters and buffers to `path` as safetensors, wholly or not at all.

    Extra state of modules is written as far as it is tensors; a warning names what is not.

    Raises
    ------
    TrompeError
        If the file cannot be written; one that was there before is kept.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise TrompeError(
            f"{path} can't be written: there is no folder {path.parent}; check the folder."
        )
    state = model.state_dict()
    held = _tensors(state)
    if left := listed("kinds of extra state", (name for name in state if name not in held)):
        warnings.warn(
            f"{path} holds tensors alone, without {left}: a model that reads it keeps its own.",
            stacklevel=2,
        )
    # Copied, because safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in held.items()
    }
    with runs.replacing(path) as new:
        new.touch()
        mode = new.stat().st_mode
        safetensors.torch.save_file(tensors, new)
        new.chmod(mode)  # safetensors makes its files private


def require_uncompressed(path: Path) -> None:
    """Refuse an archive that would be larger unpacked; torch.save compresses nothing.

    Raises
    ------
    ValueError
        If it would.
    """
    with path.open("rb") as file:
        if file.read(4) == b"PK\3\4":
            with zipfile.ZipFile(file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > path.stat().st_size:
                raise ValueError(f"it would grow to {size:,} bytes")


def _state_dict(content: Any, path: Path) -> dict[str, Any]:
    """The state dict in what a file holds, which may be nested in mappings."""
    if not isinstance(content, Mapping) or not content:
        raise TrompeError(
            f"{path} holds no state dict but a {type(content).__name__}; give a file saved from "
            "model.state_dict()."
        )
    found = dict(_state_dicts(content))
    if not found:
        strange = [str(k) for k, v in content.items() if not _is_weight(k, v)]
        raise TrompeError(
            f"{path} holds no state dict: {listed('entries that are no named tensors', strange)}; "
            "give a file saved from model.state_dict()."
        )
    usual = ([name for name in found if name.split(".")[0] == nest] for nest in _NESTS)
    names = next(filter(None, usual), [*found])
    largest = max(len(found[name]) for name in names)
    names = [name for name in names if len(found[name]) == largest]
    if len(names) > 1:
        raise TrompeError(
            f"{path} holds {listed('state dicts', names)}; save the one you mean to a file of its "
            "own."
        )
    return dict(found[names[0]])


def _state_dicts(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All mappings of names to tensors in nested mappings, by their dotted names.

    Mappings may hold themselves or one another many times: only so many are looked at.
    """
    waiting = deque([("", content)])
    for _ in range(_MAPPINGS):
        if not waiting:
            return
        name, one = waiting.popleft()
        if any(isinstance(v, Tensor) for v in one.values()) and all(
            _is_weight(k, v) for k, v in one.items()
        ):
            yield name, one
            continue
        for key, inner in one.items():
            if isinstance(key, str) and isinstance(inner, Mapping):
                waiting.append((f"{name}.{key}".removeprefix("."), inner))


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and (isinstance(value, Tensor) or name.endswith(_EXTRA))


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _unwrapped(
    state: Mapping[str, Any], expected: Mapping[str, Tensor], origin: str
) -> Mapping[str, Any]:
    """The part of a state under the prefix that leaves most names that the model has."""
    if not any("_orig_mod." in k for k in expected):
        state = {k.replace("_orig_mod.", ""): v for k, v in state.items()}
    hits: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            own = expected.get(".".join(parts[depth:]))
            if own is not None and own.shape == getattr(state[name], "shape", None):
                hits["".join(f"{part}." for part in parts[:depth])] += 1
    most = max(hits.values(), default=0)
    if not most or hits[""] == most or 2 * most < len(expected):
        return state
    prefixes = [prefix for prefix, count in hits.items() if count == most]
    if len(prefixes) > 1:
        raise TrompeError(
            f"{origin} holds the model's weights several times, after {' and '.join(prefixes)}; "
            "save those you mean to a file of their own."
        )
    rest = [name for name in state if not name.startswith(prefixes[0])]
    if rest:
        warnings.warn(
            f"Of {origin}, what begins with '{prefixes[0]}' is taken, without "
            f"{listed('others', rest)}.",
            stacklevel=4,
        )
    return {k.removeprefix(prefixes[0]): v for k, v in state.items() if k not in rest}


def _translated(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return `state` under the names that `model` has for them, without auxiliary heads."""
    state = dict(state)
    if isinstance(model, DenseNet):
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
        state = {old.sub(r"\1\2.", k): v for k, v in state.items()}
    if isinstance(model, GoogLeNet | Inception3) and not model.aux_logits:
        state = {
            k: v for k, v in state.items() if not k.startswith(("aux1.", "aux2.", "AuxLogits."))
        }
    return state


def _classes(
    reshaped: list[str], state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> int | None:
    """Return the number of classes of `state` if the shapes differ in nothing else."""
    if any(state[k].shape[1:] != expected[k].shape[1:] for k in reshaped):
        return None
    given = {state[k].shape[:1].numel() for k in reshaped}
    wanted = {expected[k].shape[:1].numel() for k in reshaped}
    return given.pop() if len(given) == len(wanted) == 1 else None


def _shape(value: Any) -> list[int] | str:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__
