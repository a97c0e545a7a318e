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
        if _is_checkpointed():
            return func(*args, **kwargs)
        if func is torch.cat:
            return _cat(*args, **kwargs)
        if func is F.max_pool2d:  # with indices it is another function
            return _laid_out(func(*args, **kwargs))
        if func in _AFFINE and (call := _AFFINE[func](*args, **kwargs)) is not None:
            return _Affine.apply(self, *call)
        return func(*args, **kwargs)


def _is_checkpointed() -> bool:
    """Whether the model's own checkpointing will run this again, and expects the same tensors."""
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None


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
        _, to_w, to_b = torch.ops.aten.native_batch_norm_backward(
            g, x, w, self.mean, self.variance, None, None, False, self.eps, (False, *mask[1:])
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

    def keep(gradient: Tensor) -> None:
        if gradient.requires_grad and gradient.is_contiguous(**kept):
            gradient.register_hook(lambda v: v.contiguous(**kept))  # type: ignore[no-untyped-call]

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
    if isinstance(padding, str) or not _is_served(input):
        return None
    geometry = _Convolution(_pair(stride), _pair(padding), _pair(dilation), groups)
    return geometry, input, weight, bias


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
    if not _is_served(input):
        return None
    return _BatchNorm(running_mean, running_var, eps), input, weight, bias


def _is_served(input: Tensor) -> bool:
    return (
        input.dim() == 4
        and input.requires_grad
        and not torch.is_autocast_enabled(input.device.type)
    )


_AFFINE: dict[Callable[..., Any], Callable[..., _Call | None]] = {
    F.conv2d: _convolution,
    F.batch_norm: _batch_norm,
}
