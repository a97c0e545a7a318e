"""Gradient checkpointing: the same values, what runs again, and what does not."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import TensorDataset

from trompe import LRP, GradCAM, Location, SimpleGrad, TrompeError, fool
from trompe.models import checkpointed, load_model

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LAYERS = {
    "embedded-vgg": "features.11:input",
    "embedded-resnet": "layer4.1:input",
    "embedded-densenet": "features.denseblock3.denselayer4:input",
}


def network(name):
    return load_model(name).model


def saved(work):
    """How many numbers autograd keeps of what ``work`` computes."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", [GradCAM, LRP, SimpleGrad])
def test_fooling_ends_with_the_same_weights(name, kind):
    model, layer = network(name).double(), LAYERS[name]  # Adam makes rounding errors large
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    data = TensorDataset(images, torch.arange(6))
    given = {"explainer": kind(layer=layer), "objective": Location(), "lr": 1e-3, "steps": 3}
    given |= {"batch_size": 3, "device": "cpu", "quiet": True}
    plain = fool(model, data, **given).model
    again = fool(model, data, **given, gradient_checkpointing=True).model
    for one, other in zip(plain.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)
    assert not any("forward" in module.__dict__ for module in again.modules())


@pytest.mark.parametrize("name", LAYERS)
def test_less_is_kept(name):
    model = network(name)
    plain = saved(lambda: model(IMAGE).sum().backward())
    with checkpointed(model, IMAGE, [LAYERS[name]]):
        assert saved(lambda: model(IMAGE).sum()) < 0.7 * plain


def test_blocks_below_run_twice_and_those_above_once():
    model = network("embedded-resnet")
    calls = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1)
        )
    with checkpointed(model, IMAGE, ["layer4.1:input"]):
        calls.clear()
        model(IMAGE).sum().backward()
    assert calls["layer1.0.conv1"] == calls["layer4.0.conv1"] == 2
    assert calls["layer4.1.conv1"] == calls["fc"] == 1
    calls.clear()
    model(IMAGE).sum().backward()
    assert set(calls.values()) <= {1, 2}  # a ResNet's ReLU is called twice in a block
    assert calls["layer1.0.conv1"] == 1


class Tangled(nn.Module):
    """Layers in place at the start, after blocks and in a row; nested and repeated parts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        block = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1)})
        block.forward = lambda x: block["a"](x.tanh())
        self.body = nn.Sequential(
            nn.Hardswish(inplace=True),
            nn.Conv2d(3, 4, 3),
            nn.Hardswish(inplace=True),
            nn.Hardswish(inplace=True),
            nn.Sequential(nn.Hardswish(inplace=True), nn.Conv2d(4, 4, 1)),
            block,
            nn.Hardswish(inplace=True),
            self.shared,
            nn.Sigmoid(),
            self.shared,
        )
        self.top = nn.Conv2d(4, 5, 1)

    def forward(self, images):
        return self.top(self.body(images + 0)).mean((2, 3))


def test_layers_that_work_in_place_give_the_same_gradients():
    model = Tangled().double()
    again = copy.deepcopy(model)
    again.body[5].forward = lambda x, of=again.body[5]: of["a"](x.tanh())
    image = IMAGE.double()
    model(image).square().sum().backward()
    with checkpointed(again, image, ["top"]):
        assert "forward" in again.body.__dict__
        again(image).square().sum().backward()
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_timm_model_keeps_less():
    model = timm.create_model("convnext_atto", num_classes=10).eval()
    plain = saved(lambda: model(IMAGE).sum())
    with checkpointed(model, IMAGE, ["stages.3:input"]):
        assert saved(lambda: model(IMAGE).sum()) < 0.5 * plain


def test_where_nothing_can_be_saved(tmp_path):
    model = network("embedded-resnet")
    refused = pytest.raises(TrompeError, match=r"would save nothing.*before input; leave it out")
    with refused, checkpointed(model, IMAGE, ["input"]):
        pass
    with pytest.raises(TrompeError, match="would save nothing"):
        fool(
            model,
            TensorDataset(IMAGE, torch.tensor([0])),
            explainer=SimpleGrad(),
            objective=Location(),
            lr=1e-3,
            steps=1,
            quiet=True,
            gradient_checkpointing=True,
            run_dir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()
