"""The attention of every layer, whatever computes it, and the gradient of the score in it.

No module has to return it: a function mode sees where a pass attends. A softmax that the model
takes itself is the attention; of ``scaled_dot_product_attention``, which holds one, it is computed
beside, and its gradient is g Vᵀ for the gradient g of the operation's output P V. So the pass
itself stays as it is, with fused kernels too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trompe.base import torch_compat
from trompe.explainers.needs import Explained, Need, Recorded, Service
from trompe.explainers.sites import Site
from trompe.explainers.twice import gradients_between
from trompe.maps import full_precision


class Attended(NamedTuple):
    """Attention of one layer.

    Attributes
    ----------
    probabilities
        P ``[N, heads, T, T]``: how much each token attends to each.
    output
        What the layer goes on with: P itself, or P V.
    values
        V ``[N, heads, T, d]``, or None if the output is P.
    """

    probabilities: Tensor
    output: Tensor
    values: Tensor | None = None

    def gradient(self, of_output: Tensor) -> Tensor:
        """The gradient in P, from that in ``output``."""
        return of_output if self.values is None else of_output @ self.values.mT


class Watch(TorchFunctionMode):
    """Context of a pass whose attention is kept, layer by layer.

    Parameters
    ----------
    graph
        Whether to begin a graph at the first layer, if the pass has none.
    aside
        Makes a context for what is no part of the pass.
    """

    def __init__(
        self,
        *,
        graph: bool,
        aside: Callable[[], AbstractContextManager[None]] = torch_compat.unseen,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.aside = aside
        self.layers: list[Attended] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._multi_head(func, args, kwargs)
        output = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            with self.aside():
                beside = _beside(*args, **kwargs)
            return self._keep(output, *beside)
        if func in (torch.softmax, F.softmax, Tensor.softmax) and output.dim() > 2:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            return self._keep(output) if dim in (-1, output.dim() - 1) else output
        return output

    def _multi_head(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Let it take `scaled_dot_product_attention`, which is watched."""
        written = torch_compat.written_in_python(func)
        assert written is not None
        with self:
            output, _ = written(*args, **{**kwargs, "need_weights": False})
        if not kwargs.get("need_weights", True):
            return output, None
        weights = self.layers[-1].probabilities
        return output, weights.mean(1) if kwargs.get("average_attn_weights", True) else weights

    def _keep(
        self, output: Tensor, probabilities: Tensor | None = None, values: Tensor | None = None
    ) -> Tensor:
        """Keep a layer, and go on with a copy, so that nothing changes it in place."""
        if self.graph:
            torch.set_grad_enabled(True)
            with self.aside():
                output.requires_grad_()
        self.layers.append(
            Attended(output if probabilities is None else probabilities, output, values)
        )
        return output.clone()


def _beside(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """The probabilities of ``scaled_dot_product_attention`` before dropout, and its values."""
    with torch.autograd.graph.saved_tensors_hooks(_same, _same):
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return scores.softmax(-1), value


def _same(tensor: Tensor) -> Tensor:  # a model's own checkpoint has no part in it
    return tensor


class Layer(NamedTuple):
    """What is asked for of one layer, both ``[N, heads, T, T]``, never in half precision.

    Attributes
    ----------
    probabilities
        How much each token attends to each.
    gradient
        That of the score in them; None if it is not asked for.
    """

    probabilities: Tensor
    gradient: Tensor | None = None


class AttentionService(Service[list[Layer]]):
    """Watches the pass, and takes the gradients in one backward pass."""

    def __init__(
        self, recorded: Recorded, wanted: Sequence[tuple[Need[list[Layer]], Site]]
    ) -> None:
        super().__init__(recorded, wanted)
        graph = any(isinstance(need, Attention) and need.gradient for need, _ in wanted)
        self.watch = Watch(graph=graph, aside=recorded.aside)

    @property
    def sites(self) -> set[Site]:
        """None."""
        return set()

    def around(self) -> AbstractContextManager[Any]:
        """The watch."""
        return self.watch

    def find(self, need: Need[list[Layer]], site: Site, explained: Explained) -> list[Layer]:
        """The attention of every layer, in the order in which they ran."""
        assert isinstance(need, Attention)
        _ = self.recorded.output
        if not need.gradient:
            return [Layer(full_precision(a.probabilities)) for a in self.watch.layers]
        return explained.once(self, lambda: self._with_gradients(explained))

    def _with_gradients(self, explained: Explained) -> list[Layer]:
        attended = self.watch.layers
        if not attended:
            return []
        with torch.enable_grad():
            score = explained.score_in(self.recorded.output).sum()
        found = gradients_between(
            score, [a.output for a in attended], self.recorded.twice, retain_graph=True
        )
        return [
            Layer(
                full_precision(a.probabilities),
                full_precision(torch.zeros_like(a.probabilities) if g is None else a.gradient(g)),
            )
            for a, g in zip(attended, found, strict=True)
        ]


@dataclass(frozen=True)
class Attention(Need[list[Layer]]):
    """Attention probabilities of every layer, with the gradient of the score in them if asked for.

    Attributes
    ----------
    gradient
        Whether the gradients are asked for.
    """

    service: ClassVar[type[Service[list[Layer]]]] = AttentionService

    gradient: bool = False
