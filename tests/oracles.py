"""Oracles that several tests share."""

import copy

import torch


def assert_gradient_is_finite_difference(explainer, model, x, classes):
    """The parameter gradient of a loss over maps, in a random direction, within 1e-4."""
    explainer = explainer.resolve(model, x[:1])
    weights = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    shape = explainer(model, x, classes).shape
    mix = torch.randn(shape, generator=generator, dtype=torch.float64)

    def loss(parameters):
        changed = copy.deepcopy(model)
        changed.load_state_dict({**model.state_dict(), **parameters})
        with torch.no_grad():
            return (explainer(changed, x, classes) * mix).sum()

    (explainer(model, x, classes) * mix).sum().backward()
    direction = {
        key: torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for key, p in weights.items()
    }
    length = sum(d.square().sum() for d in direction.values()).sqrt()
    direction = {key: d / length for key, d in direction.items()}
    slope = sum((p.grad * direction[k]).sum() for k, p in weights.items() if p.grad is not None)
    step = 1e-8
    plus, minus = (
        loss({k: p.detach() + s * step * direction[k] for k, p in weights.items()}) for s in (1, -1)
    )
    assert abs(slope) > 0
    torch.testing.assert_close(slope, (plus - minus) / (2 * step), rtol=1e-4, atol=1e-8)
