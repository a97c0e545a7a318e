"""Weights: read safely, fitted to a model with every misfit named, written atomically."""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.models import DenseNet, GoogLeNet, Inception3

from trompe.base.messages import first_sentence
from trompe.errors import TrompeError

SUFFIXES = (".safetensors", ".pth", ".pt")
_NESTS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
_NAMED = 3

_log = logging.getLogger(__name__)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a ``.safetensors``, ``.pth`` or ``.pt`` file, on the CPU.

    Nothing in the file is executed. A dict nested under ``state_dict``, ``model_state_dict`` or
    ``model`` is found.

    Raises
    ------
    TrompeError
        If there is no such file, or it holds something else than named tensors.
    """
    if not path.is_file():
        raise TrompeError(f"There is no weights file {path}; check the path.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
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
    return _state_dict(content, path)


def fit_weights(
    model: nn.Module, state: Mapping[str, Tensor], origin: str, *, new_head: bool = False
) -> None:
    """Copy `state` into `model`, in the model's precision; every key must fit.

    Keys of a parallel or compiled model, and of DenseNet as torchvision once named them, are
    translated; the auxiliary heads of GoogLeNet and Inception are left out.

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
        If keys are missing, unexpected or of another shape, or if a weight is not a number.
    """
    expected = model.state_dict()
    state = _translated(state, model, expected)
    reshaped = [k for k, v in state.items() if k in expected and v.shape != expected[k].shape]
    fitting = OrderedDict((k, v) for k, v in state.items() if k not in reshaped)
    # MNASNet refuses a state dict without a version, and safetensors hold none.
    fitting._metadata = {"": {"version": model._version}}  # type: ignore[attr-defined]
    missing, unexpected = model.load_state_dict(fitting, strict=False)
    filled = {expected[k].data_ptr() for k in fitting if k in expected}
    missing = [k for k in missing if k not in reshaped and expected[k].data_ptr() not in filled]

    classes = _classes(reshaped, state, expected)
    if missing or unexpected or (reshaped and classes is None):
        misfits = (
            _listed("missing", (f"{k} {_shape(expected[k])}" for k in missing)),
            _listed("unexpected", (f"{k} {_shape(state[k])}" for k in unexpected)),
            _listed(
                "of another shape",
                (f"{k} {_shape(state[k])} instead of {_shape(expected[k])}" for k in reshaped),
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
    broken = _listed("NaN", (k for k, v in model.state_dict().items() if v.isnan().any()))
    if broken:
        raise TrompeError(f"{origin} holds weights that are {broken}; give other weights.")


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the model's parameters and buffers to `path` as safetensors, wholly or not at all.

    Raises
    ------
    TrompeError
        If the file cannot be written; one that was there before is kept.
    """
    path = Path(path)
    # Copied, because safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        safetensors.torch.save_file(tensors, part)
        part.chmod(mode)  # safetensors makes its files private
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise TrompeError(
            f"The weights cannot be written to {path} ({error}); check the folder and its free "
            "space."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping) or not content:
        raise TrompeError(
            f"{path} holds no state dict but a {type(content).__name__}; give a file saved from "
            "model.state_dict()."
        )
    strange = [
        str(k) for k, v in content.items() if not (isinstance(k, str) and isinstance(v, Tensor))
    ]
    if strange:
        raise TrompeError(
            f"{path} holds no state dict: {_listed('entries that are no named tensors', strange)}; "
            "give a file saved from model.state_dict()."
        )
    return dict(content)


def _translated(
    state: Mapping[str, Tensor], model: nn.Module, expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return `state` under the names that `model` has for them, without auxiliary heads."""
    state = dict(state)
    for wrapper in _WRAPPERS:
        wrapped = all(k.startswith(wrapper) for k in state)
        if wrapped and not any(k.startswith(wrapper) for k in expected):
            state = {k.removeprefix(wrapper): v for k, v in state.items()}
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


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _listed(what: str, items: Iterable[str]) -> str:
    """Return ``5 missing (a, b, c and 2 more)``, or nothing if there are no items."""
    items = list(items)
    named = ", ".join(items[:_NAMED])
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return f"{len(items)} {what} ({named}{more})" if items else ""
