"""The target layer of any CNN, layers by name, and a model's mode."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm.layers
import timm.models
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.models import VisionTransformer
from torchvision.models.swin_transformer import SwinTransformer

from trompe import GradCAM
from trompe.errors import TrompeError
from trompe.models import evaluation_mode, find_heads, find_layer, get_layer, load_model

UNSEEN = f"{Path(__file__).parent / 'models' / 'unseen.py'}:unseen"
TORCHVISION = {
    "alexnet": "features.11",
    "convnext_tiny": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "regnet_y_400mf": "trunk_output",
    "resnet18": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_1": "classifier.2",
    "vgg19": "features.35",
}
TIMM = {"test_resnet": "layer4", "test_convnext": "stages", "test_efficientnet": "bn2"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(side: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def lies_in(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def last_map_module(model: nn.Module, image: Tensor) -> str:
    """The leaf module that computes the last map, found in the model's traced graph instead."""
    graph = fx.symbolic_trace(model)
    with torch.no_grad():
        ShapeProp(graph).propagate(image)
    last = ""
    for node in graph.graph.nodes:
        if node.op == "call_module" and "Pool" not in str(graph.get_submodule(node.target)):
            shape = node.meta["tensor_meta"].shape
            if len(shape) == 4 and shape[2] * shape[3] > 1:
                last = node.target
    return last


def logits_without(model: nn.Module, layer: str, batch: Tensor) -> Tensor:
    handle = get_layer(model, layer).register_forward_hook(lambda *_: torch.zeros_like(_[-1]))
    with handle, torch.no_grad():
        return model(batch)


@pytest.mark.parametrize("name", TORCHVISION)
def test_finds_the_layer_of_torchvision_families(name: str) -> None:
    model = load_model(name, num_classes=5).model
    batch = images(128 if name == "inception_v3" else 64, count=2)
    layer = find_layer(model, batch[:1])
    assert layer == TORCHVISION[name]
    assert lies_in(last_map_module(model, batch[:1]), layer)
    with torch.no_grad():
        first, second = model(batch)
    assert not torch.equal(first, second)
    first, second = logits_without(model, layer, batch)
    assert torch.equal(first, second), "something bypasses the layer"


@pytest.mark.parametrize("name", TIMM)
def test_finds_the_layer_of_timm_families(name: str) -> None:
    model = load_model(f"timm:{name}", num_classes=5).model
    batch = images(96, count=2)
    layer = find_layer(model, batch[:1])
    assert layer == TIMM[name]
    first, second = logits_without(model, layer, batch)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "layer"), [("embedded", "stage3"), (UNSEEN, "exit_norm")], ids=["embedded", "unseen"]
)
def test_the_projects_own_models_end_in_a_map_of_8(name: str, layer: str) -> None:
    model = load_model(name, "random").model
    assert find_layer(model, images(64)) == layer
    assert lies_in(last_map_module(model, images(64)), layer)
    shapes = []
    with get_layer(model, layer).register_forward_hook(lambda *_: shapes.append(_[-1].shape)):
        model(images(64))
    assert shapes[0][2:] == (8, 8)


class Net(nn.Module):
    """`body` (a map), then `tail` (a function), then the classifier."""

    def __init__(self, body: nn.Module, tail: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.body = body
        self.tail = tail
        self.classifier = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.tail(self.body(x)).flatten(1))


def conv(stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, stride, padding=1)


class Calls(nn.Module):
    """Applies a function of its children."""

    def __init__(self, function: Callable[["Calls", Tensor], Tensor], **children: nn.Module):
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Shrink(nn.MaxPool2d):
    pass


@pytest.mark.parametrize(
    ("body", "layer"),
    [
        (nn.Sequential(conv(), nn.ReLU()), "body"),
        (nn.Sequential(conv(), nn.ReLU(inplace=True)), "body"),
        (nn.Sequential(conv(), nn.Identity(), nn.Dropout(), nn.Dropout(inplace=True)), "body"),
        (nn.Sequential(conv(), nn.MaxPool2d(2)), "body.0"),
        (nn.Sequential(conv(), nn.ReLU(inplace=True), Shrink(2), nn.Dropout2d()), "body.1"),
        (nn.Sequential(nn.Sequential(conv()), nn.Sequential(nn.AvgPool2d(2))), "body.0"),
        (nn.Sequential(nn.Sequential(conv(), conv()), nn.Sequential(nn.AvgPool2d(2))), "body.0"),
        (nn.Sequential(conv(), nn.AvgPool2d(2), nn.ReLU()), "body"),
        (nn.Sequential(conv(), nn.AvgPool2d(2), nn.ReLU(inplace=True)), "body"),
        (nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1)), "body.0"),
        (nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "body.0"),
        (Calls(lambda m, x: F.relu_(m.b(m.a(x))), a=conv(), b=conv()), "body"),
        (Calls(lambda m, x: m.a(m.b(m.a(x))), a=conv(), b=conv()), "body"),
        (
            Calls(lambda m, x: m.pool(m.a(m.b(m.a(x)))), a=conv(), b=conv(), pool=Shrink(2)),
            "body.a#2",
        ),
    ],
)
def test_rules_of_the_choice(body: nn.Module, layer: str) -> None:
    assert find_layer(Net(body), images(16)) == layer


def test_functional_pooling_and_attention_pooling_come_after_the_layer() -> None:
    pooled = Net(nn.Sequential(conv(), nn.ReLU()), lambda x: F.max_pool2d(x, 2))
    assert find_layer(pooled, images(16)) == "body"
    attention = timm.layers.AttentionPool2d(3, embed_dim=4, num_heads=1, feat_size=8)
    assert find_layer(nn.Sequential(conv(stride=2), attention), images(16)) == "0"


def test_the_root_is_never_the_layer() -> None:
    assert find_layer(nn.Sequential(conv()), images(16)) == "0"
    with pytest.raises(TrompeError, match="without a layer that returns a map"):
        find_layer(conv(), images(16))


SIZES = {"patch_size": 8, "num_heads": 2}
AVERAGED = SIZES | {"global_pool": "avg"}
MAP_POOLED = SIZES | {"global_pool": "map", "class_token": False}


@pytest.mark.parametrize(
    ("vit", "layer"),
    [
        (
            VisionTransformer(32, num_layers=2, hidden_dim=16, mlp_dim=16, **SIZES),
            "encoder.layers.encoder_layer_1.ln_1",
        ),
        (timm.models.VisionTransformer(32, embed_dim=16, depth=2, **SIZES), "blocks.1.norm1"),
        (
            timm.models.VisionTransformerDistilled(32, embed_dim=16, depth=2, **SIZES),
            "blocks.1.norm1",
        ),
        (
            timm.models.VisionTransformer(32, embed_dim=16, depth=2, reg_tokens=4, **SIZES),
            "blocks.1.norm1",
        ),
        (
            timm.models.SwinTransformer(
                32, 2, embed_dim=32, depths=(1, 1), num_heads=(1, 2), window_size=4
            ),
            "norm",
        ),
        (SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2]), "permute"),
        (
            timm.models.VisionTransformer(
                32, embed_dim=16, depth=2, reg_tokens=4, class_token=False, **AVERAGED
            ),
            "blocks.1.norm1",
        ),
        (timm.models.VisionTransformer(32, embed_dim=16, depth=2, **MAP_POOLED), "norm"),
        (
            timm.models.ConVit(32, embed_dim=16, depth=2, local_up_to_layer=1, **SIZES),
            "blocks.1.norm1",
        ),
        (
            timm.models.Cait(32, embed_dim=16, depth=1, depth_token_only=2, **SIZES),
            "blocks_token_only.1.norm1",
        ),
        (timm.models.Xcit(32, embed_dim=16, depth=1, **SIZES), "cls_attn_blocks.1.norm1"),
        (timm.models.MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2), "norm"),
    ],
)
def test_the_layer_of_a_transformer_is_the_last_whose_positions_reach_the_logits(
    vit: nn.Module, layer: str
) -> None:
    for parameter in vit.eval().parameters():  # a new head may be 0
        nn.init.normal_(parameter, std=0.1)
    image = images(32)
    assert find_layer(vit, image) == layer
    kept = []
    with get_layer(vit, layer).register_forward_hook(lambda *_: kept.append(_[-1])):
        logits = vit(image)
    (gradient,) = torch.autograd.grad(logits.square().sum(), kept)
    assert (gradient.flatten(2).abs().sum(2) > 0).all()


def test_a_network_of_tokens_that_are_no_grid_has_no_layer() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        tokens = m.norm(m.embed(x).flatten(2).mT[:, :7])
        return m.head(m.attention(tokens, tokens, tokens)[0].mean(1))

    mixer = Calls(
        forward,
        embed=nn.Conv2d(3, 8, 4, 4),
        norm=nn.LayerNorm(8),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        head=nn.Linear(8, 3),
    )
    with pytest.raises(TrompeError, match="at the input, or name a layer"):
        find_layer(nn.Sequential(mixer), images(16))


class TestHeads:
    """The layers that compute the logits."""

    @pytest.mark.parametrize(
        ("name", "heads"),
        [
            ("resnet18", ["fc"]),
            ("vgg19", ["classifier.6"]),
            ("squeezenet1_1", ["classifier.1"]),
            ("densenet121", ["classifier"]),
            ("timm:test_vit", ["head"]),
        ],
    )
    def test_of_known_networks(self, name: str, heads: list[str]) -> None:
        model = load_model(name, num_classes=5).model
        frozen = copy.deepcopy(model).requires_grad_(False)
        side = 160 if "vit" in name else 64
        assert find_heads(model, images(side)) == heads
        assert find_heads(frozen, images(side)) == heads
        assert not any(p.requires_grad for p in frozen.parameters())

    @pytest.mark.parametrize(
        ("forward", "heads"),
        [
            (lambda m, h: m.a(h), ["a"]),
            (lambda m, h: (m.a(h) + m.b(h)) / 2, ["a", "b"]),
            (lambda m, h: m.norm(m.a(m.b(h))), ["a"]),
            (lambda m, h: F.linear(F.normalize(m.b(h)), F.normalize(m.a.weight)) * 9, ["a"]),
            (lambda m, h: F.linear(h, m.b.weight.T), ["b"]),
            (lambda m, h: m.normed(h) * m.scale, ["normed"]),
        ],
        ids=range(6),
    )
    def test_are_found_by_execution(self, forward: Callable[..., Tensor], heads: list[str]) -> None:
        """However late the body is registered, and whatever follows without weights."""
        model = Calls(
            lambda m, x: forward(m, m.body(x).mean((2, 3))),
            a=nn.Linear(4, 4),
            b=nn.Linear(4, 4),
            norm=nn.BatchNorm1d(4),
            normed=nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            body=nn.Conv2d(3, 4, 3),
        )
        model.scale = nn.Parameter(torch.ones(1, 4))
        assert find_heads(model, images(8)) == heads
        with torch.no_grad():
            assert find_heads(nn.DataParallel(model), images(8)) == heads

    def test_behind_a_body_without_a_graph(self) -> None:
        def forward(m: nn.Module, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = m.body(x).mean((2, 3))
            return m.a(h)

        model = Calls(forward, a=nn.Linear(4, 4), body=nn.Conv2d(3, 4, 3))
        assert find_heads(model, images(8)) == ["a"]


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 3, 16, 16)])
def test_more_or_less_than_one_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TrompeError, match=r"one image \[1, 3, H, W\]"):
        find_layer(nn.Sequential(conv()), torch.zeros(shape))


class Breaking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


@pytest.mark.parametrize("breaks", [False, True])
def test_finding_a_layer_leaves_the_model_and_the_image_alone(breaks: bool) -> None:
    model = Net(nn.Sequential(nn.ReLU(inplace=True), conv(), nn.BatchNorm2d(3), nn.Dropout()))
    image = images(16)
    model(image.clone())
    if breaks:
        model.classifier = Breaking()
    model.train()
    model.body[2].eval()
    modes = [module.training for module in model.modules()]
    state, before = copy.deepcopy(model.state_dict()), image.clone()
    if breaks:
        with pytest.raises(RuntimeError, match="broken"):
            find_layer(model, image)
    else:
        find_layer(model, image)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(image, before)


def test_a_layer_is_found_in_inference_mode_too() -> None:
    with torch.inference_mode():
        assert find_layer(load_model(UNSEEN).model, images(64)) == "exit_norm"


def test_evaluation_mode_is_scoped() -> None:
    model = load_model(UNSEEN).model.train()
    model.entry_norm.eval()
    modes = [module.training for module in model.modules()]
    assert set(modes) == {True, False}
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert [module.training for module in model.modules()] == modes


def test_get_layer_by_name() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    assert get_layer(model, "layer4.1") is model.layer4[1]
    assert get_layer(nn.DataParallel(model), "layer4.1") is model.layer4[1]
    assert get_layer(torch.compile(model), "layer4.1") is model.layer4[1]
    assert get_layer(torch.compile(model), "_orig_mod.layer4.1") is model.layer4[1]
    inside = nn.Sequential(nn.Identity(), nn.DataParallel(model))
    assert get_layer(inside, "1.layer4.1") is model.layer4[1]
    for empty in ("module", "_orig_mod"):
        with pytest.raises(TrompeError, match="has no layer"):
            get_layer(torch.compile(model), empty)
    assert get_layer(model, "module.layer4.1") is model.layer4[1]
    shared = Calls(lambda m, x: x, a=model, b=model)
    assert get_layer(shared, "b.layer4") is model.layer4


@pytest.mark.parametrize(
    ("name", "close"), [("layr4", "layer4"), ("layer4.9", "layer4.1"), ("", ""), ("weight", "")]
)
def test_an_unknown_layer_is_named_with_close_ones(name: str, close: str) -> None:
    model = torchvision.models.resnet18(num_classes=3)
    with pytest.raises(TrompeError, match=r"named_modules\(\)") as raised:
        get_layer(model, name)
    assert repr(name) in str(raised.value)
    assert close in str(raised.value)


def test_of_a_module_that_runs_several_times_it_is_one_call():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.act, self.fc = nn.SiLU(), nn.Linear(4, 5)

        def forward(self, x):
            x = self.act(self.second(self.act(self.first(x))))
            return self.fc(self.act(x.mean((2, 3))))

    model, image = Shared().eval(), torch.randn(1, 3, 8, 8)
    assert find_layer(model, image) == "act#2"
    maps = GradCAM()(model, image, 1)
    expected = GradCAM(layer="act#2")(model, image, 1)
    assert torch.equal(maps, expected)
    assert maps.shape == (1, 4, 4)
