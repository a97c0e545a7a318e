"""The layers that the logits come from, found by execution."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.models.call import logits_of
from trompe.models.layers import evaluation_mode

Step = Any  # a node of autograd's graph


def find_heads(model: nn.Module, image: Tensor) -> list[str]:
    """The names of the layers with weights whose outputs the logits are computed from.

    Where they are registered does not matter, nor whether they share weights with other layers;
    a model with several heads has several. Weights that no layer of their own applies go by the
    module that holds them. The model is left as it was.

    Parameters
    ----------
    model
        The classifier.
    image
        One image ``[1, 3, H, W]``.

    Raises
    ------
    TrompeError
        If no layer with weights is met on the way back from the logits to the image.
    """
    model = copy.deepcopy(model).requires_grad_(True)
    applied: dict[Step, str] = {}
    for name, module in model.named_modules():
        if _has_weights(module) and not any([*c.parameters()] for c in module.children()):
            module.register_forward_hook(partial(_record, applied, name))
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model):
        image = image.detach().clone().requires_grad_()
        end = logits_of(model(image)).grad_fn
    users: dict[Step, list[Step]] = defaultdict(list)
    for step in _closure([end], _inputs):
        for given in _inputs(step):
            users[given].append(step)
    start = [step for step in users if getattr(step, "variable", None) is image]
    from_image = _closure(start, lambda step: users.get(step, []))
    holders = {
        id(p): name for name, m in model.named_modules() for p in m.parameters(recurse=False)
    }

    def weights(step: Step) -> list[str]:
        own = _closure([g for g in _inputs(step) if g not in from_image], _inputs)
        variables = [s.variable for s in own if hasattr(s, "variable")]
        names = [holders[id(v)] for v in variables if v.dim() > 1 and id(v) in holders]
        return [name.partition(".parametrizations.")[0] for name in names]

    heads: dict[str, None] = {}

    def before(step: Step) -> list[Step]:
        found = [applied[step]] if step in applied else weights(step)
        heads.update(dict.fromkeys(found))
        return [] if found else [given for given in _inputs(step) if given in from_image]

    if end in from_image:
        _closure([end], before)
    if not heads:
        raise TrompeError(
            f"No layer with weights was found behind the logits of {type(model).__name__}; its "
            "head must have parameters that autograd follows."
        )
    return list(heads)


def _has_weights(module: nn.Module) -> bool:
    return any(p.dim() > 1 for p in module.parameters(recurse=False))


def _record(applied: dict[Step, str], name: str, module: nn.Module, _: Any, output: Any) -> None:
    for tensor in output if isinstance(output, tuple | list) else [output]:
        if isinstance(tensor, Tensor):
            applied.setdefault(tensor.grad_fn, name)


def _inputs(step: Step) -> list[Step]:
    return [given for given, _ in step.next_functions if given is not None]


def _closure(start: Iterable[Step], following: Callable[[Step], list[Step]]) -> dict[Step, None]:
    """All steps that are reached, each once, in the order in which they are."""
    todo = list(start)
    seen: dict[Step, None] = {}
    while todo:
        step = todo.pop()
        if step not in seen:
            seen[step] = None
            todo += following(step)
    return seen
