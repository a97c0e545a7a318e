"""LRP through attention: LXT's values, written-out attention, gradients, conservation, defaults."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from tests.models.small import images, make
from tests.oracles import assert_gradient_is_finite_difference
from trompe import LRP, Recording
from trompe.explainers.relevance import Choice, Epsilon, conservation, find_composite

BOTH = ("attn-lrp", "cp-lrp")
TINY = 1e-12  # keeps quotients from 0 and leaves their values as they are
V2 = {
    "block": models.swin_transformer.SwinTransformerBlockV2,
    "downsample_layer": models.swin_transformer.PatchMergingV2,
}
TRANSFORMERS = {
    "vit": lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10),
    "swin": lambda: models.SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=10),
    "swin v2": lambda: models.SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=10, **V2),
}


def transformer(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TRANSFORMERS[name]().double().eval()
        for parameter in model.parameters():
            if not parameter.any() or parameter.dim() == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def exact(composite):
    """The composite with the smallest of stabilisers, and LRP-ε where it has another rule."""
    gates = composite == "attn-lrp"
    rules = [Choice(Epsilon(TINY, gates), kind) for kind in Epsilon.kinds]
    return find_composite(composite).extended("exact", *rules)


def by_lxt(model, x, target, composite):
    """Relevance at the input and at the last normalisation before attention, of a torchvision ViT
    written with the functions of LXT."""
    lxt = pytest.importorskip("lxt.explicit.functional")
    rules = pytest.importorskip("lxt.explicit.rules")

    def linear(tensor, weight, bias):
        return lxt.linear_epsilon(tensor, weight, bias, TINY)

    def norm(layer, tensor):
        return lxt.layer_norm_grad_fn.apply(tensor, layer.weight, layer.bias, layer.eps, TINY)

    def attention(layer, tensor):
        qkv = linear(tensor, layer.in_proj_weight, layer.in_proj_bias)
        heads = (t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        query, key, value = heads
        scaled = lxt.mul2(query, 1 / math.sqrt(layer.head_dim))
        weights = lxt.softmax(lxt.matmul(scaled, key.mT, epsilon=TINY), -1)
        if composite == "cp-lrp":
            mixed = rules.epsilon_lrp(torch.matmul, TINY, weights.detach(), value)
        else:
            mixed = lxt.matmul(weights, value, epsilon=TINY)
        mixed = mixed.transpose(1, 2).flatten(2)
        return linear(mixed, layer.out_proj.weight, layer.out_proj.bias)

    def plus(a, b):
        return lxt.add2(a, b, epsilon=TINY)

    start = x.clone().requires_grad_()
    patches = F.unfold(start, model.patch_size, stride=model.patch_size).mT
    tokens = linear(patches, model.conv_proj.weight.flatten(1), model.conv_proj.bias)
    tokens = torch.cat([model.class_token.expand(len(x), -1, -1), tokens], 1)
    tokens = plus(tokens, model.encoder.pos_embedding)
    for block in model.encoder.layers:
        normed = norm(block.ln_1, tokens)
        tokens = plus(tokens, attention(block.self_attention, normed))
        first, second = block.mlp[0], block.mlp[3]
        hidden = rules.identity(F.gelu, linear(norm(block.ln_2, tokens), first.weight, first.bias))
        tokens = plus(tokens, linear(hidden, second.weight, second.bias))
    head = model.heads.head
    logits = linear(norm(model.encoder.ln, tokens)[:, 0], head.weight, head.bias)
    torch.testing.assert_close(logits, model(x))
    explained = logits[:, target]
    return torch.autograd.grad(explained, (start, normed), explained)


@pytest.mark.parametrize("composite", BOTH)
def test_values_on_a_vit_are_those_of_lxt(composite):
    model, x = transformer("vit"), images(2, 32, torch.float64)
    at_input, at_norm = by_lxt(model, x, 3, composite)
    explainers = [LRP(layer=layer, composite=exact(composite)) for layer in ("input", None)]
    with torch.no_grad(), Recording(model, explainers) as forward:
        forward(x)
        ours = forward.maps(3)
    grid = at_norm[:, 1:].sum(-1).view(2, 4, 4)
    for mine, theirs in zip(ours, (at_input.sum(1), grid), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("composite", BOTH)
def test_parameter_gradients_are_finite_differences(name, composite):
    model, x = transformer(name), images(1, 32, torch.float64)
    for layer in ("input", None):
        model.zero_grad()
        explainer = LRP(layer=layer, composite=composite)
        assert_gradient_is_finite_difference(explainer, model, x, torch.tensor([2]))


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("composite", BOTH)
def test_all_relevance_is_accounted_for(name, composite):
    model, x = transformer(name), images(2, 32, torch.float64)
    table = conservation(LRP(composite=composite), model, x, 2)
    arrived, lost = table["received"].iloc[-1], table[["bias", "stabiliser", "other"]].sum()
    np.testing.assert_allclose(arrived + lost.sum(), 1, rtol=1e-6)
    constant = table["operation"] == "cat"  # of the class token
    assert table["other"][~constant].abs().max() < 1e-9
    of_softmax = table.query("operation in ('softmax', 'scaled_dot_product_attention')")
    assert (of_softmax["bias"].abs().max() > 1e-6) == (composite == "attn-lrp")


class TestDefault:
    @pytest.mark.parametrize("name", TRANSFORMERS)
    @pytest.mark.parametrize("layer", ["input", None])
    def test_attn_lrp_where_there_is_attention(self, name, layer):
        """Also at a layer above all attention."""
        model, x = transformer(name), images(1, 32, torch.float64)
        ours, theirs = (LRP(layer, composite)(model, x, 1) for composite in (None, "attn-lrp"))
        torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("name", ["resnet", "convnext"])
    def test_the_papers_elsewhere(self, name):
        model, x = make(name), images()
        ours, theirs = (LRP(composite=composite)(model, x, 1) for composite in (None, "heo2019"))
        torch.testing.assert_close(ours, theirs)


MASK = torch.rand(9, 9, generator=torch.Generator().manual_seed(0)) > 0.5
MASK |= torch.eye(9, dtype=torch.bool)
BIAS = torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def written(query, key, value, bias=0.0, scale=None, hidden=None):
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.mT + bias
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ value


def einsum(query, key, value):
    scores = torch.einsum("bhic,bhjc->bhij", query, key) * query.shape[-1] ** -0.5
    return torch.einsum("bhij,bhjc->bhic", scores.softmax(-1), value)


fused = F.scaled_dot_product_attention


ATTENTION = {
    "fused": (fused, written),
    "einsum": (einsum, written),
    "scaled": (
        lambda q, k, v: fused(q, k, v, scale=0.7),
        lambda q, k, v: written(q, k, v, scale=0.7),
    ),
    "causal": (
        lambda q, k, v: fused(q, k, v, is_causal=True),
        lambda q, k, v: written(q, k, v, hidden=torch.ones(9, 9).triu(1).bool()),
    ),
    "masked": (
        lambda q, k, v: fused(q, k, v, attn_mask=MASK),
        lambda q, k, v: written(q, k, v, hidden=~MASK),
    ),
    "masked by -inf": (
        lambda q, k, v: written(q, k, v, torch.where(MASK, 0.0, -torch.inf).double()),
        lambda q, k, v: written(q, k, v, hidden=~MASK),
    ),
    "biased": (lambda q, k, v: fused(q, k, v, BIAS), lambda q, k, v: written(q, k, v, BIAS)),
    "a bias computed from the image": (
        lambda q, k, v: fused(q, k, v, q.mean(-1, keepdim=True).expand(-1, -1, -1, 9).tril()),
        lambda q, k, v: written(q, k, v, q.mean(-1, keepdim=True).expand(-1, -1, -1, 9).tril()),
    ),
    "grouped": (
        lambda q, k, v: fused(q, k[:, :1], v[:, 1:], enable_gqa=True),
        lambda q, k, v: written(q, *(t.repeat_interleave(2, 1) for t in (k[:, :1], v[:, 1:]))),
    ),
    "values that are constant": (
        lambda q, k, v: fused(q, k, BIAS[:, :4].expand_as(v)),
        lambda q, k, v: written(q, k, BIAS[:, :4].expand_as(v)),
    ),
    "queries that are constant": (
        lambda q, k, v: fused(BIAS[:, :4].expand_as(q), k, v),
        lambda q, k, v: written(BIAS[:, :4].expand_as(q), k, v),
    ),
}


class Attending(nn.Module):
    """Attention of queries, keys and values that are features of the image."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        self.stem, self.head = nn.Conv2d(3, 24, 2, 2), nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).mT.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = self.attention(*tokens.unbind(0))
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("composite", BOTH)
@pytest.mark.parametrize(("function", "equal"), ATTENTION.values(), ids=ATTENTION)
def test_equal_attention_has_equal_maps_and_gradients(function, equal, composite):
    torch.manual_seed(0)
    model, x = Attending(function).double(), images(2, 6, torch.float64)
    plain = copy.deepcopy(model)
    plain.attention = equal
    results = []
    for network in (model, plain):
        maps = LRP(composite=exact(composite))(network, x, 1)
        maps.square().sum().backward()
        results.append((maps, network.stem.weight.grad, network.head.weight.grad))
        with torch.no_grad():
            torch.testing.assert_close(LRP(composite=exact(composite))(network, x, 1), maps)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert results[0][0].isfinite().all()
    assert results[0][0].abs().max() > 0


class Multihead(nn.Module):
    def __init__(self, make, call):
        super().__init__()
        self.call, self.inner = call, make()
        self.stem, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.call(self.inner, self.stem(x).flatten(2).mT)
        return self.head(tokens.mean(1))


MULTIHEAD = {
    "fast path": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda inner, t: inner(t, t, t, need_weights=False)[0],
        lambda inner, t: inner(t, t, t, need_weights=True)[0],
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda inner, t: inner(t),
        lambda inner, t: inner(t, src_mask=torch.zeros(9, 9, dtype=t.dtype)),
    ),
}


@pytest.mark.parametrize("composite", BOTH)
@pytest.mark.parametrize(("make", "call", "other"), MULTIHEAD.values(), ids=MULTIHEAD)
def test_the_fast_path_of_multihead_attention(make, call, other, composite):
    torch.manual_seed(0)
    model, x = Multihead(make, call).double().eval(), images(2, 6, torch.float64)
    plain = copy.deepcopy(model)
    plain.call = other
    with torch.no_grad():
        ours, theirs = (LRP(composite=exact(composite))(m, x, 1) for m in (model, plain))
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, theirs)


def test_relevance_of_a_softmax_goes_along_its_tangent():
    """Achtibat et al. 2024, prop. 3.1."""

    class Softmax(nn.Module):
        def forward(self, x):
            return x.flatten(1).softmax(1)[:, :5] * torch.arange(1.0, 6)

    x = images(2, 2, torch.float64)
    s = x.flatten(1).softmax(1)
    r = torch.zeros_like(s)
    r[:, 3] = 4 * s[:, 3]
    expected = x.flatten(1) * (r - s * r.sum(1, keepdim=True))
    maps = LRP(composite="epsilon")(Softmax(), x, 3)
    torch.testing.assert_close(maps, expected.view_as(x).sum(1))
