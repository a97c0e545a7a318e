"""Functions whose gradient is differentiated once more, written so that this can be done cheaply.

In PyTorch's second derivative of a convolution the weight's part is a convolution with a kernel as
large as the image, and that of BatchNorm is a dozen passes over its input. Both functions are
affine in their input: f(x, w) = J(w) x + c. What arrives as v at their gradient J(w)ᵀ g goes on to
g as J(w) v, and to w as the gradient of ⟨J(w) v, g⟩: a plain weight gradient, with v in x's place.
What else was found to be slow or impossible is mended below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from trompe.base import torch_compat

Mask = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class TwiceDifferentiable(TorchFunctionMode):
    """Context of a forward pass whose gradients will be differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.of_weights = True

    @contextmanager
    def without_weights(self) -> Iterator[None]:
        """Gradients taken in here are in tensors between layers; those of weights are left out."""
        self.of_weights = False
        try:
            yield
        finally:
            self.of_weights = True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        if torch_compat.is_checkpointed():
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:  # the fused kernels have no second derivative
            return torch_compat.attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:  # nor here, unless the weights are asked for
            output, weights = func(*args, **{**kwargs, "need_weights": True})
            return output, weights if kwargs.get("need_weights", True) else None
        if func is torch.cat:
            return _cat(*args, **kwargs)
        if func is F.max_pool2d:  # with indices it is another function
            return _laid_out(func(*args, **kwargs))
        if func is F.linear:
            return _linear(self, *args, **kwargs)
        if func in _AFFINE and (call := _AFFINE[func](*args, **kwargs)) is not None:
            return _Affine.apply(self, *call)
        return func(*args, **kwargs)


def gradients_between(
    score: Tensor,
    tensors: Sequence[Tensor],
    mode: TwiceDifferentiable | None,
    *,
    retain_graph: bool | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of a score in tensors that are no parameters, of a pass under ``mode``.

    They have a graph, unless ``mode`` is None; None stands where the score depends on nothing.
    """
    with mode.without_weights() if mode else nullcontext():
        return torch.autograd.grad(
            score,
            tensors,
            create_graph=mode is not None,
            retain_graph=retain_graph,
            allow_unused=True,
        )


class _Function(Protocol):
    """A function f(x, w, b) of x ``[N, C, h, w]``, affine in x."""

    def __call__(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """Its value."""

    @property
    def linear(self) -> Self:
        """J(w) x, if there is no b."""

    def gradients(self, g: Tensor, x: Tensor, w: Tensor, mask: Mask) -> Gradients:
        """Those of ⟨f, g⟩ in x, w and b, as far as the mask says so."""


@dataclass(frozen=True)
class _Convolution:
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def __call__(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(x, w, b, self.stride, self.padding, self.dilation, self.groups)

    @property
    def linear(self) -> Self:
        return self

    def gradients(self, g: Tensor, x: Tensor, w: Tensor, mask: Mask) -> Gradients:
        geometry = (self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
        found: Gradients = torch.ops.aten.convolution_backward(g, x, w, [len(w)], *geometry, mask)
        return found


@dataclass(frozen=True)
class _BatchNorm:
    mean: Tensor
    variance: Tensor
    eps: float

    def __call__(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, w, b, eps=self.eps)

    @property
    def linear(self) -> Self:
        return replace(self, mean=torch.zeros_like(self.mean))

    def gradients(self, g: Tensor, x: Tensor, w: Tensor, mask: Mask) -> Gradients:
        unsaved = self.mean.new_empty(0)  # statistics of the batch, which CUDA wants to be there
        statistics = (self.mean, self.variance, unsaved, unsaved)
        _, to_w, to_b = torch.ops.aten.native_batch_norm_backward(
            g, x, w, *statistics, False, self.eps, (False, *mask[1:])
        )
        return self.linear(g, w, None) if mask[0] else None, to_w, to_b


def _cat(tensors: tuple[Tensor, ...] | list[Tensor], dim: int = 0, **others: Any) -> Tensor:
    joined: Tensor = torch.cat(tensors, dim, **others) if others else _Joined.apply(dim, *tensors)
    return joined


class _Joined(torch.autograd.Function):
    """Tensors side by side; PyTorch pads what arrives at each gradient to the size of the whole."""

    @staticmethod
    def forward(ctx: Any, dim: int, *tensors: Tensor) -> Tensor:
        ctx.dim, ctx.sizes = dim, [tensor.shape[dim] for tensor in tensors]
        return torch.cat(tensors, dim)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch.split(g, ctx.sizes, ctx.dim)


def _laid_out(pooled: Tensor) -> Tensor:
    """PyTorch's second derivative of max-pooling loses the channels-last layout: keep it."""

    kept = {"memory_format": torch.channels_last}

    def lay_out(v: Tensor | None) -> Tensor | None:
        return None if v is None else v.contiguous(**kept)

    def keep(gradient: Tensor | None) -> None:  # None where nothing arrives
        if gradient is not None and gradient.requires_grad and gradient.is_contiguous(**kept):
            gradient.register_hook(lay_out)  # type: ignore[no-untyped-call]

    if pooled.requires_grad:
        pooled.register_hook(keep)  # type: ignore[no-untyped-call]
    return pooled


class _Affine(torch.autograd.Function):
    """A function's value."""

    @staticmethod
    def forward(
        ctx: Any,
        mode: TwiceDifferentiable,
        function: _Function,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
    ) -> Tensor:
        ctx.mode, ctx.function = mode, function
        ctx.save_for_backward(x, w)
        return function(x, w, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        if ctx.mode.of_weights:
            return None, None, *ctx.function.gradients(g, x, w, ctx.needs_input_grad[2:])
        return None, None, _Pulled.apply(ctx.function, x.detach(), g, w), None, None


class _Pulled(torch.autograd.Function):
    """J(w)ᵀ g."""

    @staticmethod
    def forward(ctx: Any, function: _Function, x: Tensor, g: Tensor, w: Tensor) -> Any:
        ctx.function = function
        ctx.save_for_backward(g, w)
        return function.gradients(g, x, w, (True, False, False))[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        g, w = ctx.saved_tensors
        linear = ctx.function.linear
        _, to_w, _ = linear.gradients(g, v, w, (False, ctx.needs_input_grad[3], False))
        return None, None, linear(v, w, None), to_w


class _Linear(torch.autograd.Function):
    """x wᵀ + b, and two zeros as large as x and the value, where v and g of its gradient arrive.

    So w has one gradient made, from the rows of both passes: that of a fully connected layer can be
    as large as all else.
    """

    @staticmethod
    def forward(
        ctx: Any, mode: TwiceDifferentiable, x: Tensor, w: Tensor, b: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.mode, ctx.claimed = mode, False
        ctx.set_materialize_grads(False)
        value = F.linear(x, w, b)
        zeros = [value.new_zeros(()).expand(like.shape) for like in (x, value)]
        ctx.save_for_backward(x, w, *zeros)
        return value, *zeros

    @staticmethod
    def backward(ctx: Any, *arrived: Any) -> tuple[Tensor | None, ...]:
        g, v, pulled = arrived  # None where nothing arrives
        x, w, *_ = ctx.saved_tensors
        if not ctx.mode.of_weights:
            return None, _pulled(ctx, g, w), None, None
        _, of_x, of_w, of_b = ctx.needs_input_grad
        pairs = [(left, right) for left, right in ((g, x), (pulled, v)) if left is not None]
        return (
            None,
            _rows(g, w) if of_x and g is not None else None,
            _outer(pairs) if of_w and pairs else None,
            g.flatten(0, -2).sum(0) if of_b and g is not None else None,
        )


class _PulledLinear(torch.autograd.Function):
    """g w. What the gradient of w is made of goes to the zeros, if there are any."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, *zeros: Tensor) -> Tensor:
        ctx.sends = bool(zeros)
        ctx.save_for_backward(g, w)
        return _rows(g, w)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        g, w = ctx.saved_tensors
        pushed = _rows(v, w.T)
        if ctx.sends:
            return pushed, None, v, g
        return pushed, _outer([(g, v)]) if ctx.needs_input_grad[1] else None


def pull_linear(value: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """g w, for a ``value`` x wᵀ + b or its clone, with whose gradient in w this one's is made."""
    node: Any = value.grad_fn
    if node is not None and node.name() == "CloneBackward0":
        node = node.next_functions[0][0]
    return _pulled(node, g, w)


def _pulled(node: Any, g: Tensor, w: Tensor) -> Tensor:
    """g w; only the first of a pass has the zeros, where v and g of several would be summed."""
    zeros: Sequence[Tensor] = ()
    if getattr(node, "claimed", True) is False:
        _, _, *zeros = node.saved_tensors
        node.claimed = True
    pulled: Tensor = _PulledLinear.apply(g, w, *zeros)
    return pulled


def _rows(g: Tensor, w: Tensor) -> Tensor:
    """g w in one product, however g lies in memory."""
    rows: Tensor = g.flatten(0, -2) @ w
    return rows.view(*g.shape[:-1], w.shape[1])


def _outer(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ over pairs and rows of left ⊗ right."""
    left, right = (torch.cat([t.flatten(0, -2) for t in side]) for side in zip(*pairs, strict=True))
    return left.T @ right


_Call = tuple[_Function, Tensor, Tensor, Tensor | None]


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Call | None:
    if isinstance(padding, str) or input.dim() != 4 or not _is_served(input):
        return None
    geometry = _Convolution(_pair(stride), _pair(padding), _pair(dilation), groups)
    return geometry, input, weight, bias


def _linear(
    mode: TwiceDifferentiable, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    if input.dim() == 1 or not _is_served(input):
        return F.linear(input, weight, bias)
    value: Tensor = _Linear.apply(mode, input, weight, bias)[0]
    return value


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Call | None:
    """None if statistics of the batch are used: that is not affine."""
    if training or running_mean is None or running_var is None or weight is None:
        return None
    if input.dim() != 4 or not _is_served(input):
        return None
    return _BatchNorm(running_mean, running_var, eps), input, weight, bias


def _is_served(input: Tensor) -> bool:
    return input.requires_grad and not torch.is_autocast_enabled(input.device.type)


_AFFINE: dict[Callable[..., Any], Callable[..., _Call | None]] = {
    F.conv2d: _convolution,
    F.batch_norm: _batch_norm,
}
