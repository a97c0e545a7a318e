"""`evaluate` with five explainers on two models against the explanations' own time."""

from collections.abc import Iterator

import torch
from torch.utils.data import TensorDataset

from benchmarks.measure import Candidate, Row, compared
from benchmarks.networks import PAPERS_LAYERS, batch, network
from trompe import LRP, GradCAM, Location, SimpleGrad, TopK, evaluate

IMAGES = 16


def candidates(name: str, size: int) -> dict[str, Candidate]:
    """`evaluate`, and each of its explainers by itself on both models."""
    models = [network(name), network(name)]
    images, labels = batch(size, IMAGES), torch.arange(IMAGES) % 10
    layer = PAPERS_LAYERS[name]
    explainers = [
        GradCAM(layer=layer),
        LRP(layer=layer),
        SimpleGrad(layer=layer),
        SimpleGrad(),
        LRP(layer="input"),
    ]

    @torch.no_grad()
    def alone() -> None:
        for model in models:
            for explainer in explainers:
                for some, of in zip(images.split(8), labels.split(8), strict=True):
                    explainer(model, some, of)

    def together() -> None:
        evaluate(
            *models,
            TensorDataset(images, labels),
            explainers=explainers,
            objective=[Location(), TopK()],
            batch_size=8,
        )

    return {
        "explanations": (alone, "explanations", None),
        "evaluate": (together, "explanations", 1.3),
    }


def measure(size: int, rounds: int, quick: bool) -> Iterator[Row]:
    """A row per network: both models, 16 images, two objectives."""
    for name in list(PAPERS_LAYERS)[-1:] if quick else PAPERS_LAYERS:
        seconds, ratio = compared(candidates(name, size), rounds)["evaluate"]
        per_thousand = seconds / IMAGES * 1000
        yield Row(name, "evaluate, 1,000 images", "explanations", per_thousand, ratio, 1.3)
