"""Explanations without a graph against those of Captum, Zennit, autoLRP and pytorch-grad-cam."""

from collections.abc import Iterator

import autolrp
import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import NoiseTunnel, Saliency
from pytorch_grad_cam import GradCAM as TheirGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer

from benchmarks.measure import Candidate, Row, Work, compared, peak_megabytes
from benchmarks.networks import batch, network
from trompe import LRP, GradCAM, IntegratedGradients, SmoothGrad
from trompe.explainers import Explainer

VIT = "vit_b_16"
LAYERS = {VIT: "", "vgg16": "features", "resnet50": "layer4"}
SAMPLES = 4


def candidates(name: str, size: int) -> dict[str, Candidate]:
    """From a candidate's name to its work, what it is compared with, and the ratio aimed at."""
    model, images = network(name), batch(size)
    classes = torch.zeros(len(images), dtype=torch.int64)
    layer = model.get_submodule(LAYERS[name])

    def ours(explainer: Explainer) -> Work:
        @torch.no_grad()
        def work() -> object:
            return explainer(model, images, classes)

        return work

    @torch.no_grad()
    def forward() -> object:
        return model(images)

    def auto_lrp() -> object:
        wrapped = autolrp.tensor(images.clone())
        model(wrapped)[:, 0].sum().lrp()
        return wrapped.relevance

    if name == VIT:
        attention = ours(LRP(composite="attn-lrp"))
        return {
            "forward": (forward, "forward", None),
            "autoLRP": (auto_lrp, "forward", None),
            "lrp attn-lrp": (attention, "autoLRP", 0.45),
            "lrp attn-lrp in forward passes": (attention, "forward", 3.0),
        }

    def grad_cam() -> object:
        with TheirGradCAM(model=model, target_layers=[layer]) as cam:
            return cam(images, [ClassifierOutputTarget(0)] * len(images))

    def zennit() -> object:
        canonizers = [ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]
        hot = torch.eye(10)[classes]
        with Gradient(model=model, composite=EpsilonPlus(canonizers=canonizers)) as attributor:
            return attributor(images.clone(), lambda out: out * hot)

    def noise_tunnel() -> object:
        tunnel = NoiseTunnel(Saliency(model))
        return tunnel.attribute(
            images,
            nt_samples=SAMPLES,
            nt_samples_batch_size=1,
            stdevs=0.1,
            target=classes,
            abs=False,
        )

    def integrated() -> object:
        method = CaptumIntegratedGradients(model)
        return method.attribute(images, target=classes, n_steps=SAMPLES, internal_batch_size=8)

    return {
        "forward": (forward, "forward", None),
        "pytorch-grad-cam": (grad_cam, "forward", None),
        "Zennit epsilon-plus": (zennit, "forward", None),
        "Captum SmoothGrad": (noise_tunnel, "forward", None),
        "Captum Integrated Gradients": (integrated, "forward", None),
        "grad-cam": (ours(GradCAM(layer=LAYERS[name])), "pytorch-grad-cam", 0.45),
        "grad-cam in forward passes": (ours(GradCAM(layer=LAYERS[name])), "forward", 1.1),
        "lrp epsilon-plus": (ours(LRP(composite="epsilon-plus")), "Zennit epsilon-plus", 0.45),
        "smooth-grad": (ours(SmoothGrad(samples=SAMPLES)), "Captum SmoothGrad", 1.0),
        "integrated-gradients": (
            ours(IntegratedGradients(steps=SAMPLES)),
            "Captum Integrated Gradients",
            1.0,
        ),
    }


def measure(size: int, rounds: int, quick: bool) -> Iterator[Row]:
    """A row per network and method."""
    for name in list(LAYERS)[-1:] if quick else LAYERS:
        methods = candidates(name, size)
        found = compared(methods, rounds)
        for what, (_, base, aim) in methods.items():
            peak = None
            if not quick and what == "lrp epsilon-plus":
                own, other = (peak_megabytes("explanations", name, c, size) for c in (what, base))
                peak = own / other
            yield Row(name, what, base, *found[what], aim, peak)
