"""Every operation with a rule, in all forms that PyTorch has of it."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trompe.explainers.relevance import Tape, find_composite, propagate
from trompe.explainers.relevance.operations import (
    ALIASES,
    KINDS,
    PRODUCTS,
    RULES,
    operation_name,
)
from trompe.explainers.relevance.routing import unchanged

NAMES = sorted({*KINDS, *RULES, *PRODUCTS, *ALIASES})


def x(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape or (4, 4, 4, 4), generator=generator, dtype=torch.float64) + 0.5


def some(*shape, high=4):
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % high


SQUARE, ROW = x(4, 4), x(4)
# What most operations take, tried in order.
ARGUMENTS = [
    *[(x(),), (x(), 2), (x(), x()), (x(), 1, 0), (x(), 0, 1), (x(), (4, 4)), (x(), (1, 1))],
    *[(x(), (2, 2, 4, 4, 4)), (x(), 0, 0, 1), (x(), 0, some(2)), (x(), x() > 1)],
    *[(x(), x() > 1, 0.0), (x() > 1, x(), x()), (x(), 2, 0), ([x(), x()],), (x(), torch.float32)],
    *[(SQUARE,), (SQUARE, SQUARE), (SQUARE, ROW), (x(4, 4, 4), x(4, 4, 4)), (ROW,), (ROW, ROW)],
]
PADDING = [1, 1], [0, 0], [1, 1]
OTHER_ARGUMENTS = {
    **{f"{kind}_pool1d": (x(4, 4, 4), 2) for kind in ("avg", "max", "adaptive_avg")},
    **dict.fromkeys(("max_pool1d_with_indices", "adaptive_max_pool1d"), (x(4, 4, 4), 2)),
    **dict.fromkeys(("conv3d", "conv_transpose3d"), (x(1, 2, 3, 3, 3), x(2, 2, 2, 2, 2))),
    "fake_quantize_per_tensor_affine": (x(), 0.1, 0, 0, 255),
    "grid_sample": (x(), x(4, 3, 3, 2) - 1),
    "index_copy": (x(), 1, some(2), x(4, 2, 4, 4)),
    "masked_scatter": (x(), x() > 1, x()),
    "scatter": (x(), 1, some(4, 2, 4, 4), x()),
    "gather": (x(), 1, some(4, 4, 4, 4)),
    "take_along_dim": (x(), some(4, 4, 4, 4), 1),
    **dict.fromkeys(("split_with_sizes", "unsafe_split_with_sizes"), (x(), [1, 3], 1)),
    **{f"max_unpool{d}d": (x(*[2] * (d + 2)), some(*[2] * (d + 2)), 2) for d in (1, 2, 3)},
    "adaptive_max_pool1d_with_indices": (x(4, 4, 4), 2),
    "addbmm": (SQUARE, x(4, 4, 4), x(4, 4, 4)),
    "addmm": (SQUARE, SQUARE, SQUARE),
    "addmv": (ROW, SQUARE, ROW),
    "addr": (SQUARE, ROW, ROW),
    "as_strided": (x(), (4, 4), (1, 4)),
    "baddbmm": (x(4, 4, 4), x(4, 4, 4), x(4, 4, 4)),
    "batch_norm": (x(), ROW, ROW),
    "broadcast_to": (ROW, (4, 4)),
    "convolution": (x(), x(), None, *PADDING, False, [0, 0], 1),
    "copy": (x(), x()),
    "einsum": ("nchw,cd->ndhw", x(), SQUARE),
    "expand": (ROW, 4, 4),
    "fake_quantize_per_channel_affine": (x(), ROW.float(), torch.zeros(4), 1, 0, 255),
    "feature_dropout": (x(), 0.5, False),
    "fold": (x(4, 4, 9), (4, 4), 2),
    "grid_sampler": (x(), x(4, 3, 3, 2) - 1, 0, 0, False),
    "index_fill": (x(), 1, some(2), 0.0),
    "multi_dot": ([SQUARE, SQUARE, SQUARE],),
    "native_dropout": (x(), 0.5, False),
    "permute": (x(), (1, 0, 2, 3)),
    "scaled_dot_product_attention": (x(), x(), x()),
    "select_scatter": (x(), x(4, 4, 4), 1, 0),
    "take": (x(), some(3)),
    "unflatten": (x(), 1, (2, 2)),
}
PROPERTIES = {"T": SQUARE, "H": SQUARE, "mT": x(), "mH": x(), "data": x()}
NOT_HERE = {"cuda"}
OWNERS = (torch, torch.Tensor, F, torch.special, torch.linalg, torch._C._nn)


class Spy(TorchFunctionMode):
    """Notes the names of what is called, with their function."""

    def __init__(self):
        super().__init__()
        self.heard = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.heard[operation_name(func)] = func
        return func(*args, **(kwargs or {}))


def copied(tree):
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    return type(tree)(map(copied, tree)) if isinstance(tree, list | tuple) else tree


def forms(name):
    """The functions of a name: method, function of torch or nn.functional, in place, reflected."""
    if name in PROPERTIES:
        yield lambda t: getattr(t, name)
    spellings = (name, f"{name}_", f"__{name}__", f"special_{name}", f"linalg_{name}")
    for owner, spelling in itertools.product(OWNERS, spellings):
        if callable(found := getattr(owner, spelling, None)) and not isinstance(found, type):
            yield found


def calls(name):
    """Each form with arguments that it takes, and what was heard of it."""
    given = [(PROPERTIES[name],)] if name in PROPERTIES else ARGUMENTS
    given = [OTHER_ARGUMENTS[name]] if name in OTHER_ARGUMENTS else given
    for function in forms(name):
        for arguments in given:
            own = copied(arguments)
            try:
                with Spy() as spy:
                    function(*own)
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
                continue
            yield function, arguments, spy.heard
            break


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_HERE])
def test_every_name_is_what_pytorch_calls_it_in_all_its_forms(name):
    found = [heard for _, _, heard in calls(name)]
    assert found, "no form of it could be called"
    for heard in found:
        assert ALIASES.get(name, name) in heard or not heard, heard
    assert any(found)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_HERE])
def test_every_form_of_every_operation_sends_relevance_back(name):
    """Of the shape of the inputs; in place as otherwise; all of it, where it passes unchanged."""
    for function, arguments, heard in calls(name):
        if not heard:
            continue
        tape, given = Tape(nn.Identity()), copied(arguments)
        tensors = [t for t in given if isinstance(t, torch.Tensor)] or given[0]
        started = [t for t in tensors if t.is_floating_point()][PRODUCTS.get(name, 0)]
        live = started.clone()
        given = [live if t is started else t for t in given]
        if isinstance(given[0], list):
            given[0] = [live if t is started else t for t in given[0]]
        with torch.no_grad(), tape:
            start = tape.start(started, live)
            function(*given)
        for operation in tape.operations:
            out = operation.output
            if operation.name == "softmax":  # a gate
                continue
            relevance = torch.ones(out.shape, dtype=torch.float64)
            with torch.no_grad():
                got = propagate(tape, out, relevance, find_composite("epsilon"), {start})[start]
            assert got.shape == started.shape
            assert got.isfinite().all()
            if RULES.get(operation.name) is unchanged:
                torch.testing.assert_close(got.sum(), relevance.sum())
