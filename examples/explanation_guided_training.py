"""Train a classifier whose relevance stays inside the object's mask.

The explanation is part of the loss, in a plain PyTorch training loop: the forward pass of the
classification loss also feeds the explainer, and the gradient of the penalty reaches every
parameter. Prints how much Grad-CAM heat lies on the object, with and without the penalty.

    python examples/explanation_guided_training.py --steps 150
"""

import argparse

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from trompe import GradCAM, Shapes, load_model


def train(penalty: float, steps: int, seed: int) -> float:
    torch.manual_seed(seed)
    model = load_model("embedded", weights="random", seed=seed).model.train()
    explainer = GradCAM(layer="stage3")
    data = Shapes("train", size=16 * steps)
    images, labels = next(iter(DataLoader(data, batch_size=len(data))))
    masks = torch.stack([data.mask(i) for i in range(len(data))])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        rows = slice(16 * step, 16 * (step + 1))
        with explainer.record(model) as forward:
            logits = forward(images[rows])
            heat = forward.heatmaps(labels[rows])
            loss = F.cross_entropy(logits, labels[rows]) + penalty * outside(heat, masks[rows])
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()

    test = Shapes("validation", size=256)
    images, labels = next(iter(DataLoader(test, batch_size=256)))
    masks = torch.stack([test.mask(i) for i in range(256)])
    with torch.no_grad():
        heat = explainer.heatmap(explainer(model, images, labels))
    return 1 - outside(heat, masks).item()


def outside(heat: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Share of the heat that lies off the object."""
    mask = F.adaptive_max_pool2d(masks[:, None].float(), heat.shape[1:])[:, 0]
    share = (heat * (1 - mask)).sum((1, 2)) / heat.sum((1, 2)).clamp_min(1e-6)
    return share.mean()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--penalty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for penalty in (0.0, options.penalty):
        inside = train(penalty, options.steps, options.seed)
        print(f"penalty {penalty:g}: {inside:.1%} of the heat lies on the object")
