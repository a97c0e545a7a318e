"""Each private or version-dependent piece of PyTorch, and what it guards."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from trompe.base import torch_compat
from trompe.models.graph import node_of, nodes_behind


class Seen(TorchFunctionMode):
    """Notes what runs under it."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **kwargs or {})


def test_a_checkpoint_of_the_models_own_is_noticed():
    """torch._C._autograd._top_saved_tensors_default_hooks: since 2.6."""
    found = []

    def part(x):
        found.append(torch_compat.is_checkpointed())
        return x.sin()

    x = torch.randn(3, requires_grad=True)
    part(x)
    checkpoint(part, x, use_reentrant=False)
    assert found == [False, True]
    assert not torch_compat.is_checkpointed()


def test_unseen_operations_reach_no_mode():
    """torch._C.DisableTorchFunction: without it a tape records what is no part of the model."""
    with Seen() as seen:
        torch.ones(2).sin()
        with torch_compat.unseen():
            torch.ones(2).cos()
    assert "sin" in seen.names
    assert "cos" not in seen.names


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.eye(5).log1p()[None, None].double()},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()},
        {"enable_gqa": True},
    ],
    ids=("plain", "causal", "scaled", "biased", "masked", "grouped"),
)
def test_attention_is_pytorchs_and_can_be_differentiated_twice(options):
    """aten._scaled_dot_product_attention_math: the fused kernels have no second derivative."""
    torch.manual_seed(0)
    heads = 1 if "enable_gqa" in options else 2
    query = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    key, value = torch.randn(2, 1, heads, 5, 4, dtype=torch.float64, requires_grad=True).unbind()
    ours = torch_compat.attention(query, key, value, **options)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(query, key, value, **options))
    (gradient,) = torch.autograd.grad(ours.square().sum(), query, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), query)[0].abs().sum() > 0


def test_operations_that_autograd_passes_over_are_known():
    """The node's name: of a quantised layer autograd makes a WarnNotImplemented."""
    model = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(3, 2)), {nn.Linear}, dtype=torch.qint8
    )
    x = torch.randn(2, 3, requires_grad=True)
    assert any(map(torch_compat.has_no_derivative, nodes_behind([node_of(model(x))])))
    plain = nodes_behind([node_of(F.linear(x, torch.ones(2, 3)).relu().sum())])
    assert not any(map(torch_compat.has_no_derivative, plain))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_that_allow_no_gradients_are_known(reentrant):
    """The node's name: torch.autograd.grad through it is an error."""
    x = torch.randn(3, requires_grad=True)
    result = checkpoint(torch.sin, x, use_reentrant=reentrant)
    nodes = nodes_behind([node_of(result)])
    assert any(map(torch_compat.is_reentrant_checkpoint, nodes)) == reentrant


class TestCompiled:
    """OptimizedModule is private; the stance is one for all threads."""

    def test_the_module_inside(self):
        model = nn.Linear(2, 2)
        assert torch_compat.compiled_from(torch.compile(model, backend="eager")) is model
        assert torch_compat.compiled_from(model) is None

    def test_runs_as_it_was_written_and_is_compiled_again_after(self):
        compiled = []

        def backend(graph, _):
            compiled.append(graph)
            return graph

        model = torch.compile(nn.Linear(2, 2), backend=backend)
        first, second = torch_compat.eagerly(), torch_compat.eagerly()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)  # as another thread may
        model(torch.ones(1, 2))
        assert not compiled
        second.__exit__(None, None, None)
        model(torch.ones(1, 2))
        assert compiled


def test_what_pytorch_writes_in_python_is_seen_as_what_it_calls():
    """Every function of torch.nn.functional that asks has_torch_function first, by its code."""
    x = torch.randn(2, 3, 4)
    weights = torch.randn(12, 4), torch.randn(12), torch.randn(4, 4), torch.randn(4)
    projections = (*weights[:2], None, None, False, 0.0, *weights[2:])
    given = (x, x, x, 4, 2, *projections)
    written = torch_compat.written_in_python(F.multi_head_attention_forward)
    with Seen() as plain:
        expected, _ = F.multi_head_attention_forward(*given, need_weights=False)
    with Seen() as inside:
        found, _ = written(*given, need_weights=False)
    assert torch.equal(found, expected)
    assert plain.names == ["multi_head_attention_forward"]
    assert "scaled_dot_product_attention" in inside.names
    assert torch_compat.written_in_python(torch.relu) is None
    assert torch_compat.written_in_python(F.scaled_dot_product_attention) is None
