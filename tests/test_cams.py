"""Class activation maps against pytorch-grad-cam and slow definitions, on maps and on tokens."""

import numpy as np
import pytest
import pytorch_grad_cam
import timm.models
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

from tests.models.small import images, make
from tests.oracles import assert_gradient_is_finite_difference
from trompe import GradCAM, Recording, TrompeError
from trompe.explainers import (
    EigenCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RelevanceCAM,
    ScoreCAM,
    XGradCAM,
)

CLASSES = torch.tensor([1, 4])
THEIRS = {
    GradCAM: pytorch_grad_cam.GradCAM,
    GradCAMPlusPlus: pytorch_grad_cam.GradCAMPlusPlus,
    XGradCAM: pytorch_grad_cam.XGradCAM,
    LayerCAM: pytorch_grad_cam.LayerCAM,
    HiResCAM: pytorch_grad_cam.HiResCAM,
    ScoreCAM: pytorch_grad_cam.ScoreCAM,
    EigenCAM: pytorch_grad_cam.EigenCAM,
}
LAYERS = {"resnet": "layer4", "vit": "blocks.1.norm1", "swin": "permute", "window": "features.1.1"}
TO_GRID = {
    "resnet": None,
    "vit": lambda tokens: tokens[:, 1:].mT.unflatten(2, (4, 4)),
    "swin": None,
    "window": lambda tensor: tensor.permute(0, 3, 1, 2),
}


def network(name, dtype=torch.float64):
    """A ResNet, or a transformer of 2 blocks, with logits of ordinary size."""
    if name == "resnet":
        return make("resnet", dtype)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        if name == "vit":
            model = timm.models.VisionTransformer(
                32, 8, num_classes=5, embed_dim=8, depth=2, num_heads=2
            )
        else:
            model = SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=5)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def batch(dtype=torch.float64):
    return images(2, dtype=dtype)


def raw(kind, model, name, x):
    """The library's map before it is cut at 0, resized and stretched."""
    layer = model.get_submodule(LAYERS[name])
    targets = [ClassifierOutputTarget(int(c)) for c in CLASSES]
    with kind(model, [layer], reshape_transform=TO_GRID[name]) as cam:
        cam(x, targets)
        kept = cam.activations_and_grads
        activations, *_ = (a.numpy() for a in kept.activations)
        gradients, *_ = [g.numpy() for g in kept.gradients] or [None]
        return cam.get_cam_image(x, layer, targets, activations, gradients, False)


@pytest.mark.parametrize("kind", THEIRS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", LAYERS)
def test_values_are_those_of_pytorch_grad_cam(name, kind):
    model, x = network(name), batch()
    ours = kind(layer=LAYERS[name])(model, x, CLASSES).detach()
    theirs = torch.from_numpy(np.array(raw(THEIRS[kind], model, name, x))).to(ours)
    if kind is EigenCAM:  # there the sign is that of NumPy's decomposition
        theirs = theirs * (ours * theirs).sum((1, 2), keepdim=True).sign()
    scale = theirs.abs().amax((1, 2), keepdim=True)
    assert (scale > 0).all()
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-5)


def test_eigen_cam_has_the_sign_of_its_largest_entry():
    maps = EigenCAM()(network("resnet"), batch(), CLASSES).flatten(1)
    assert torch.equal(maps.abs().amax(1), maps.amax(1))


def test_xgrad_cam_gives_no_weight_to_channels_that_are_off():
    activation, gradient = torch.randn(2, 1, 3, 2, 2)
    activation[:, 1] = 0
    weights = XGradCAM().weights(activation, gradient)
    assert weights.isfinite().all()
    assert weights[0, 1] == 0


def shared_by_z_plus(x, layer, relevance):
    """α1β0, output by output, for every image ``[n]`` of x; biases count as contributions."""
    result = torch.zeros_like(x)
    for image in range(len(x)):
        for j, (weights, bias) in enumerate(zip(layer.weight, layer.bias, strict=True)):
            parts = (x[image] * weights).clamp(min=0)
            total = parts.sum() + bias.clamp(min=0) + 1e-6
            result[image] += parts / total * relevance[image, j]
    return result


def test_relevance_cam_is_its_slow_definition():
    model, x = make("vgg", torch.float64), batch()
    first, last = model.classifier[0], model.classifier[3]
    with torch.no_grad():
        activation = model.features(x)
        pooled = model.avgpool(activation)
        hidden = first(pooled.flatten(1)).relu()
        logits = last(hidden)
        start = torch.empty_like(logits)
        for image, c in enumerate(CLASSES):
            start[image] = -logits[image, c] / (logits.shape[1] - 1)
            start[image, c] = logits[image, c]
        relevance = shared_by_z_plus(hidden, last, start)
        relevance = shared_by_z_plus(pooled.flatten(1), first, relevance).view_as(pooled)
        ratio = activation.shape[2] // pooled.shape[2]
        share = relevance / (pooled + 1e-6) / ratio**2
        relevance = activation * share.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3)
        slow = (relevance.mean((2, 3), keepdim=True) * activation).sum(1)
    ours = RelevanceCAM(layer="features")(model, x, CLASSES)
    torch.testing.assert_close(ours.detach(), slow)
    assert not torch.allclose(slow, RelevanceCAM(layer="features")(model, x, 0).detach())


def test_relevance_cam_by_other_rules():
    model, x = make("resnet"), images(2)
    ours = RelevanceCAM()(model, x, CLASSES)
    assert not torch.allclose(ours, RelevanceCAM(composite="epsilon")(model, x, CLASSES))
    with pytest.raises(TrompeError, match="did you mean 'epsilon'"):
        RelevanceCAM(composite="epsilom")


@pytest.mark.parametrize("kind", [*list(THEIRS)[:5], RelevanceCAM], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["vit", "swin", "window"])
def test_parameter_gradients_are_finite_differences(name, kind):
    assert_gradient_is_finite_difference(kind(layer=LAYERS[name]), network(name), batch(), CLASSES)


@pytest.mark.parametrize("kind", [ScoreCAM, EigenCAM], ids=lambda kind: kind.name)
def test_values_only_leave_the_model_as_it_was(kind):
    model, x = make("resnet").train(), images(2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    maps = kind()(model, x, CLASSES)
    assert not maps.requires_grad
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with Recording(model.eval(), [kind(), GradCAM()]) as forward:
        forward(x)
        torch.testing.assert_close(forward.maps(CLASSES)[0], maps)


def test_a_layout_is_given_with_the_layer():
    model, x, layer = network("vit"), batch(), LAYERS["vit"]
    given = HiResCAM(layer=f"{layer}@1")
    assert str(given.resolve(model, x[:1])) == f"hires-cam:layer={layer}@1"
    assert torch.equal(given(model, x, CLASSES), HiResCAM(layer=layer)(model, x, CLASSES))
    with pytest.raises(TrompeError, match="does not lie over images"):
        HiResCAM(layer=f"{layer}@4")(model, x, CLASSES)


def test_a_layer_within_windows_is_refused():
    model = timm.models.SwinTransformer(
        32, 2, embed_dim=32, depths=(1, 1), num_heads=(1, 2), window_size=4
    )
    with pytest.raises(TrompeError, match="outside of the windows"):
        LayerCAM(layer="layers.0.blocks.0.attn")(model, images(2), 0)
