"""Explanations by attention against slow definitions, on any vision transformer."""

import copy

import pytest
import timm.models
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.swin_transformer import SwinTransformer
from transformers import ViTConfig, ViTForImageClassification

from tests.models.small import images
from tests.oracles import assert_gradient_is_finite_difference
from trompe import LRP, GradCAM, Recording, TrompeError
from trompe.explainers import AttentionRelevance, Rollout
from trompe.explainers.targets import Difference

CLASSES = torch.tensor([1, 4])
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
AVERAGED = {"class_token": False, "global_pool": "avg"}
NETWORKS = {
    "torchvision": lambda: VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=5),
    "class token": lambda: timm.models.VisionTransformer(num_classes=5, **SIZES),
    "registers": lambda: timm.models.VisionTransformer(num_classes=5, reg_tokens=4, **SIZES),
    "distilled": lambda: timm.models.VisionTransformerDistilled(num_classes=5, **SIZES),
    "averaged": lambda: timm.models.VisionTransformer(num_classes=5, **AVERAGED, **SIZES),
    "register, averaged": lambda: timm.models.VisionTransformer(
        num_classes=5, reg_tokens=1, **AVERAGED, **SIZES
    ),
    "position biases": lambda: timm.models.Beit(num_classes=5, use_rel_pos_bias=True, **SIZES),
    "rotary": lambda: timm.models.Eva(num_classes=5, use_rot_pos_emb=True, **SIZES),
}
READ = {  # rows of the tokens that the classifier reads, and how many come before the patches
    "torchvision": (slice(0, 1), 1),
    "class token": (slice(0, 1), 1),
    "registers": (slice(0, 1), 5),
    "distilled": (slice(0, 2), 2),
    "averaged": (slice(0, None), 0),
    "register, averaged": (slice(1, None), 1),
    "position biases": (slice(1, None), 1),
    "rotary": (slice(1, None), 1),
}
BOTH = pytest.mark.parametrize("kind", [Rollout, AttentionRelevance], ids=lambda kind: kind.name)


def network(name, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = NETWORKS[name]()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def by_hand(attention, kept):
    """Multi-head attention of torchvision's block, written out."""

    def forward(x, *_, **__):
        query, key, value = (
            part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
            for part in F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, 2)
        )
        probabilities = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        probabilities.retain_grad()
        kept.append(probabilities)
        joined = (probabilities @ value).transpose(1, 2).flatten(2)
        return attention.out_proj(joined), None

    return forward


def slow_layers(model, x):
    """Probabilities and their gradients, from the same network without fused attention."""
    model, kept = copy.deepcopy(model), []

    def keep(_, inputs):
        inputs[0].retain_grad()
        kept.append(inputs[0])

    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.forward = by_hand(module, kept)
        elif hasattr(module, "fused_attn"):
            module.fused_attn = False
            module.attn_drop.register_forward_pre_hook(keep)
    logits = model(x)
    sum(logits[n, c] for n, c in enumerate(CLASSES)).backward()
    return [(p.detach(), p.grad) for p in kept]


def slow_flow(kind, layers, n):
    """The definitions of the papers, image by image and head by head."""
    count = layers[0][0].shape[-1]
    flow = torch.eye(count, dtype=torch.float64)
    for probabilities, gradient in layers:
        heads = range(probabilities.shape[1])
        if kind is Rollout:
            mean = sum(probabilities[n, h] for h in heads) / len(heads)
            flow = (0.5 * mean + 0.5 * torch.eye(count)) @ flow
        else:
            parts = [(gradient[n, h] * probabilities[n, h]).clamp(min=0) for h in heads]
            flow = flow + sum(parts) / len(heads) @ flow
    return flow


@BOTH
@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_those_of_the_slow_definition(name, kind):
    model, x = network(name), images(2, dtype=torch.float64)
    layers = slow_layers(model, x)
    assert len(layers) == 2
    rows, before = READ[name]
    slow = torch.stack(
        [slow_flow(kind, layers, n)[rows, before:].mean(0).view(4, 4) for n in range(2)]
    )
    ours = kind()(model, x, CLASSES)
    torch.testing.assert_close(ours.detach(), slow)
    with torch.no_grad():
        torch.testing.assert_close(kind()(model, x, CLASSES), slow)


@BOTH
def test_the_attention_of_transformers_is_what_it_returns_itself(kind):
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 5}
    config = ViTConfig(**sizes, intermediate_size=16, image_size=32, patch_size=8)
    config._attn_implementation = "eager"
    eager = ViTForImageClassification(config).double().eval()
    for parameter in eager.parameters():
        nn.init.normal_(parameter, std=0.3)
    fused, x = copy.deepcopy(eager), images(2, dtype=torch.float64)
    fused.set_attn_implementation("sdpa")
    output = eager(x, output_attentions=True)
    for probabilities in output.attentions:
        probabilities.retain_grad()
    output.logits[range(2), CLASSES].sum().backward()
    layers = [(p.detach(), p.grad) for p in output.attentions]
    slow = torch.stack([slow_flow(kind, layers, n)[0, 1:].view(4, 4) for n in range(2)])
    for model in (fused, eager):  # whose softmax is of float32
        ours = kind()(model, x, CLASSES).detach()
        torch.testing.assert_close(ours.float(), slow.float())


def test_attention_relevance_of_a_difference_is_that_of_its_gradient():
    model, x = network("class token"), images(2, dtype=torch.float64)
    given = AttentionRelevance()(model, x, Difference(1, 3))
    own = AttentionRelevance()(model, x, lambda logits: logits[:, 1] - logits[:, 3])
    torch.testing.assert_close(given, own)
    assert not torch.allclose(given, AttentionRelevance()(model, x, 1))


@BOTH
@pytest.mark.parametrize("name", ["torchvision", "class token", "averaged", "position biases"])
def test_parameter_gradients_are_finite_differences(name, kind):
    assert_gradient_is_finite_difference(
        kind(), network(name), images(2, dtype=torch.float64), CLASSES
    )


@pytest.mark.parametrize("name", ["torchvision", "class token"])
def test_one_pass_with_other_explainers(name):
    model, x = network(name), images(2, dtype=torch.float64)
    explainers = [LRP(composite="epsilon"), AttentionRelevance(), GradCAM(), Rollout()]
    for order in (explainers, explainers[::-1]):
        with Recording(model, order) as forward:
            torch.testing.assert_close(forward(x), model(x))
            for explainer, maps in zip(order, forward.maps(CLASSES), strict=True):
                torch.testing.assert_close(maps, explainer(model, x, CLASSES))


def test_weights_that_the_model_asks_for_are_what_they_were():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Asking(nn.Module):
        def __init__(self, average):
            super().__init__()
            self.attention, self.average = attention, average
            self.embed, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(24, 5)

        def forward(self, x):
            x = self.embed(x).flatten(2).mT
            x, weights = self.attention(x, x, x, average_attn_weights=self.average)
            weights = weights if self.average else weights.mean(1)
            return self.head(torch.cat([x, weights], 2).mean(1))

    x = images(2)
    for average in (True, False):
        model = Asking(average).eval()
        with Recording(model, Rollout()) as forward:
            torch.testing.assert_close(forward(x), model(x))
            assert forward.maps(CLASSES).shape == (2, 4, 4)


def test_checkpointed_blocks_keep_their_attention():
    model, x = network("class token"), images(2, dtype=torch.float64)
    expected = Rollout()(model, x, CLASSES)
    expected.square().sum().backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    maps = Rollout()(model, x, CLASSES)
    torch.testing.assert_close(maps, expected)
    maps.square().sum().backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key])


def test_how_many_tokens_are_read_is_found_or_given():
    model, x = network("distilled"), images(2, dtype=torch.float64)
    found = Rollout().resolve(model, x[:1])
    assert str(found) == "rollout:tokens=2"
    both = Rollout(tokens=2)(model, x)
    assert torch.equal(found(model, x), both)
    assert not torch.allclose(Rollout(tokens=1)(model, x), both)
    for parameter in (model.head.weight, model.head_dist.weight):
        nn.init.zeros_(parameter)
    assert Rollout().resolve(model, x[:1]).tokens == 1


@BOTH
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: resnet18(num_classes=5), "ResNet has no attention for"),
        (
            lambda: SwinTransformer([4, 4], 8, [2], [1], [2, 2], num_classes=5),
            r"attention \[16, 1, 4, 4\] for images \[1, 3, 32, 32\], as within windows",
        ),
        (
            lambda: timm.models.Cait(32, 8, num_classes=5, embed_dim=8, depth=1, num_heads=2),
            r"has attention \[1, 2, 16, 16\]",
        ),
    ],
    ids=["cnn", "windows", "class attention"],
)
def test_networks_without_global_attention_are_refused_after_one_image(kind, build, message):
    model, calls = build(), []
    model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    with pytest.raises(TrompeError, match=message):
        kind()(model, images(2), CLASSES)
    assert calls == [1]


@BOTH
def test_a_layer_is_refused(kind):
    with pytest.raises(TrompeError, match="takes no layer"):
        kind(layer="blocks.1")
