"""The layers of a model: the one to explain at, those that compute the logits, any by its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from trompe.base import torch_compat
from trompe.base.messages import did_you_mean
from trompe.errors import TrompeError
from trompe.models.call import output_of, unwrapped
from trompe.models.graph import Node, inputs_of, node_of, nodes_behind
from trompe.models.grids import grid_of
from trompe.models.hooks import can_be_hooked, evaluation_mode, hooked

_LEFT_OUT = re.compile("Pool|Drop|Identity|Flatten|StochasticDepth")
_ATTENDING = {
    *(torch.softmax, F.softmax, Tensor.softmax),
    *(F.scaled_dot_product_attention, F.multi_head_attention_forward),
}


@dataclass
class _Output:
    """What one call of a module returned, and was given; a version counts in-place changes."""

    name: str
    module: nn.Module
    given: list[Tensor]
    tensor: Tensor
    version: int
    node: Node

    @property
    def key(self) -> tuple[int, int]:
        return id(self.tensor), self.version

    @property
    def is_input(self) -> bool:
        return any(self.tensor is given for given in self.given)


@dataclass
class _Trace:
    """One forward pass of one image: what the modules below the model returned, in order.

    All of it is kept, so that no two tensors share an id. ``running`` is what each module that
    has begun was given, the innermost last; ``attending`` is that at each attention.
    """

    has_graph: bool
    outputs: list[_Output] = field(default_factory=list)
    running: list[list[Tensor]] = field(default_factory=list)
    attending: list[list[list[Tensor]]] = field(default_factory=list)
    roots: list[Node] = field(default_factory=list)
    sources: set[Node] = field(default_factory=set)

    def source(self, tensor: Tensor) -> Tensor:
        """Begin the graph here: a copy that can be traced back to, and may change in place."""
        if not self.has_graph:
            return tensor.clone()
        leaf = tensor.detach().requires_grad_()
        self.sources.add(node_of(leaf))
        with torch.enable_grad():
            return leaf.clone()

    def name(self, output: _Output) -> str:
        """The module that returned it, with the number of the call if it ran several times."""
        calls = [id(other) for other in self.outputs if other.name == output.name]
        return output.name if len(calls) == 1 else f"{output.name}#{calls.index(id(output)) + 1}"

    def behind_logits(self) -> list[_Output]:
        """The outputs that the logits depend on."""
        if not self.has_graph:
            return self.outputs
        behind = nodes_behind(self.roots)
        return [output for output in self.outputs if output.node in behind]


class _Attending(TorchFunctionMode):
    """Notes where a pass attends: by a softmax, or by an operation that holds one."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _ATTENDING:
            self.trace.attending.append(self.trace.running[:])
        return func(*args, **(kwargs or {}))


def find_layer(model: nn.Module, image: Tensor) -> str:
    """Return the name of the last layer whose output is a map that the logits depend on.

    It is the module that completes last, in a forward pass in evaluation mode, among those that
    return a map of h × w > 1 positions, channels first or last: ``layer4`` of a ResNet,
    ``features.35`` of VGG19, ``features`` of DenseNet121. Left out are pooling, dropout, identity
    and flatten modules, and containers that merely return what a pooling module computed. Of nested
    modules that return the very same tensor, the outermost is taken. Where a network goes on with
    tokens to the end, as a vision transformer, it is the normalisation before its last attention:
    after that, only the class token still reaches the logits. Without attention, as in an
    MLP-Mixer, it is the last layer that returns tokens of a grid. Of a module that runs several
    times it is one call, as in ``act#2``. The model is left as it was.

    Parameters
    ----------
    model : nn.Module
        The classifier.
    image : Tensor
        One image [1, 3, H, W], normalised.

    Raises
    ------
    TrompeError
        If `image` has another shape, or if there is no such layer.
    """
    model = unwrapped(model)
    with _traced(model, image) as trace:
        outputs = trace.behind_logits()
        pooled: set[tuple[int, int]] = set()
        found = None
        for output in outputs:
            if _is_left_out(output.module):
                if not output.is_input:
                    pooled.add(output.key)
            elif _is_map(output, image):
                if output.key not in pooled:
                    found = trace.name(output)
            elif _is_tokens(output.tensor) and any(output.module.children()):
                found = None
        found = found or _last_tokens(trace, outputs, image)
    if found is None:
        raise TrompeError(
            f"{type(model).__name__} ends without a layer that returns a map [N, C, h, w], or a "
            "grid of tokens, of more than one position; explain it at the input, or name a layer."
        )
    return found


def find_heads(model: nn.Module, image: Tensor) -> list[str]:
    """Return the names of the layers that compute the logits of one image [1, 3, H, W].

    These are the modules with the weights (of two dimensions or more) that are met first on any
    way back from the logits: ``fc`` of a ResNet, both heads of a distilled DeiT. The model itself
    is ``""``.

    Raises
    ------
    TrompeError
        If `image` has another shape, or no weights are met.
    """
    model = unwrapped(model)
    owners: dict[int, set[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if sum(side > 1 for side in parameter.shape) > 1:
                known = re.sub(r"\.?parametrizations\..*$", "", name)
                owners.setdefault(id(parameter), set()).add(known)
    with _trainable(model), _traced(model, image) as trace:
        returned: dict[Node, set[str]] = {}
        for output in trace.outputs:
            returned.setdefault(output.node, set()).add(output.name)
        from_image = _depending(nodes_behind(trace.roots), trace.sources)
        weights: dict[Node, set[str]] = {}

        def has_weights(node: Node) -> bool:
            constants = [n for n in inputs_of(node) if n not in from_image]
            leaves = nodes_behind(constants, lambda n: n in from_image)
            found = set[str]().union(
                *(owners.get(id(getattr(leaf, "variable", None)), ()) for leaf in leaves)
            )
            # Of layers that share weights, the one whose result this is.
            weights[node] = found & returned.get(node, set()) or found
            return bool(weights[node]) or node in trace.sources

        nodes_behind(trace.roots, has_weights)
    heads = set().union(*weights.values())
    if not heads:
        raise TrompeError(
            f"No layer with weights was found behind the logits of {type(model).__name__}; its "
            "head must have parameters that autograd follows."
        )
    return [name for name, _ in model.named_modules() if name in heads]


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module of `model` called `name`, with or without the names of wrappers in it.

    Raises
    ------
    TrompeError
        If there is none; close names are suggested.
    """
    modules: dict[str, nn.Module] = dict(unwrapped(model).named_modules(remove_duplicate=False))
    if name and name in modules:
        return modules[name]
    plain = {_plain(known): module for known, module in modules.items() if _plain(known)}
    if _plain(name) in plain:
        return plain[_plain(name)]
    parts = ", ".join(name for name, _ in unwrapped(model).named_children())
    raise TrompeError(
        f"{type(model).__name__} has no layer {name!r}{did_you_mean(name, modules)}; it has "
        f"{parts} and what is in them, as model.named_modules() calls it."
    )


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


@contextmanager
def _traced(model: nn.Module, image: Tensor) -> Iterator[_Trace]:
    """Run the model with a graph, if it was not made in inference mode."""
    if image.ndim != 4 or len(image) != 1:
        raise TrompeError(f"A layer is found with one image [1, 3, H, W], not {list(image.shape)}.")
    state = (*model.parameters(), *model.buffers())
    trace = _Trace(has_graph=not any(not is_lazy(t) and t.is_inference() for t in state))

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trace.running.append([t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)])

    def record(name: str, module: nn.Module, _: Any, __: Any, output: Any) -> Any:
        given = trace.running.pop()
        tensor = output[0] if isinstance(output, list | tuple) and output else output
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return None
        found = tensor
        if trace.has_graph and not tensor.requires_grad:  # computed without a graph
            found = trace.source(tensor)
        node = node_of(found) if trace.has_graph else None
        trace.outputs.append(_Output(name, module, given, found, found._version, node))
        if found is tensor:
            return None
        return found if tensor is output else type(output)((found, *output[1:]))

    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(trace.has_graph))
        stack.enter_context(torch_compat.eagerly())
        for name, module in model.named_modules():
            if module is not model and can_be_hooked(module):
                stack.enter_context(hooked(module, before=begin, after=partial(record, name)))
        stack.enter_context(_Attending(trace))
        output = output_of(model(trace.source(image.clone())))
    tensors = output if isinstance(output, list | tuple) else [output]
    trace.roots = [node_of(t) for t in tensors if isinstance(t, Tensor) and t.requires_grad]
    yield trace


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Let autograd follow frozen parameters too."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_()
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _depending(nodes: set[Node], sources: set[Node]) -> set[Node]:
    """Those of ``nodes`` that were computed from the sources."""
    users: dict[Node, list[Node]] = {}
    for node in nodes:
        for taken in inputs_of(node):
            users.setdefault(taken, []).append(node)
    found, pending = set(sources), list(sources)
    while pending:
        new = [user for user in users.get(pending.pop(), ()) if user not in found]
        found.update(new)
        pending.extend(new)
    return found


def _last_tokens(trace: _Trace, outputs: list[_Output], image: Tensor) -> str | None:
    """The layer whose tokens, a grid over the image, the last attention takes, or the very last."""
    grids = [o for o in reversed(outputs) if _is_grid_of_tokens(o, image)]
    for given in reversed(trace.attending):
        for taken in (tensor for tensors in reversed(given) for tensor in reversed(tensors)):
            for output in grids:
                if output.tensor is taken or output.tensor is taken._base:
                    return trace.name(output)
    return next((trace.name(o) for o in grids if not _is_left_out(o.module)), None)


def _is_left_out(module: nn.Module) -> bool:
    kinds = type(module).__mro__
    return any(_LEFT_OUT.search(kind.__name__) for kind in kinds) and not [*module.parameters()]


def _is_map(output: _Output, image: Tensor) -> bool:
    """Whether the output has several positions, and no more of them than the image."""
    if output.tensor.ndim != 4:
        return False
    grid = grid_of(output.tensor, image.shape, output.module)
    sides = grid(output.tensor).shape[2:] if grid else torch.Size((1, 1))
    limits = image.shape[2:]
    return sides.numel() > 1 and all(s <= limit for s, limit in zip(sides, limits, strict=True))


def _is_grid_of_tokens(output: _Output, image: Tensor) -> bool:
    tensor = output.tensor
    return tensor.ndim == 3 and grid_of(tensor, image.shape, output.module) is not None


def _is_tokens(tensor: Tensor) -> bool:
    return tensor.ndim == 3 and tensor.shape[1] > 1
