"""A step of `fool` against a plain fine-tuning step of the same network."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from benchmarks.measure import Candidate, Row, Work, compared, peak_megabytes
from benchmarks.networks import PAPERS_LAYERS, batch, network
from trompe import LRP, Active, CenterMass, GradCAM, Location, SimpleGrad, TopK
from trompe.base.memory import keep_freed_memory
from trompe.models import checkpointed
from trompe.tuning.loop import Batches
from trompe.tuning.loss import StepLoss, Term

PLAIN, BOTH = "plain", "plain, two batches"
ACTIVE = Active(c1=1, c2=2)
CHECKPOINTED = "grad-cam location, checkpointed"
OF_MEMORY = ("grad-cam location", "lrp-t top-k", "simple-grad-t top-k", CHECKPOINTED)
VIT = "vit_small_patch16_224"
LAYERS = {VIT: "blocks.11.norm1", **PAPERS_LAYERS}
CAM_AIMS = {VIT: 1.10}
LRP_AIMS = {"vgg19": 1.10, "densenet121": 1.10, "resnet50": 1.20, VIT: 1.10}


class Augmented(TensorDataset):
    """Shows another image every time, as far as `fool` knows: nothing can be kept."""

    augmented = True

    def __getitem__(self, place):
        """The item of ``(index, epoch)``."""
        return super().__getitem__(place[0])


def candidates(name: str, size: int) -> dict[str, Candidate]:
    """From a candidate's name to its step, what it is compared with, and the ratio aimed at."""
    model, original = network(name), network(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-8, fused=True)
    images, labels = batch(size), torch.arange(8) % 10
    layer = LAYERS[name]
    cam, lrp, simple = (kind(layer=layer) for kind in (GradCAM, LRP, SimpleGrad))

    def plain(times: int) -> Work:
        def work() -> None:
            optimizer.zero_grad()
            loss = sum(F.cross_entropy(model(images), labels) for _ in range(times))
            loss.backward()
            optimizer.step()

        return work

    def fooling(explainer, objective, data=TensorDataset, saving=nullcontext) -> Work:
        source = Batches(data(images, labels), 8, 0)
        pairs = data(images, labels) if objective.on_composites else None
        sources = {None: source, id(pairs): Batches(pairs or source.data, 8, 0)}
        loss = StepLoss(original, model, [Term(explainer, objective, 1.0, pairs)], sources)
        batches = [next(s.between(0, 1)) for s in loss.sources]

        def work() -> None:
            optimizer.zero_grad()
            with saving():
                loss(batches).total.backward()
            optimizer.step()

        return work

    found = {PLAIN: (plain(1), PLAIN, None), BOTH: (plain(2), PLAIN, None)}
    for objective in (Location(), TopK(), CenterMass()):
        aim = CAM_AIMS.get(name, 1.05)
        found[f"grad-cam {objective.name}"] = (fooling(cam, objective), PLAIN, aim)
        aim = LRP_AIMS.get(name)
        found[f"lrp-t {objective.name}"] = (fooling(lrp, objective), PLAIN, aim)
    found["simple-grad-t top-k"] = (fooling(simple, TopK()), PLAIN, 1.10)
    found["grad-cam active"] = (fooling(cam, ACTIVE), BOTH, 1.10)
    found["lrp-t active"] = (fooling(lrp, ACTIVE), BOTH, 1.10)
    found["lrp-t top-k, augmented"] = (fooling(lrp, TopK(), Augmented), PLAIN, 1.40)
    below = partial(checkpointed, model, images[:1], [layer])
    found[CHECKPOINTED] = (fooling(cam, Location(), saving=below), PLAIN, None)
    at_input = {"simple-grad": (SimpleGrad(), 2.3), "lrp": (LRP(layer="input"), 3.5)}
    for kind, (explainer, aim) in at_input.items():
        found[f"{kind} location"] = (fooling(explainer, Location()), PLAIN, aim)
    return found


def measure(size: int, rounds: int, quick: bool) -> Iterator[Row]:
    """A row per network and kind of step."""
    keep_freed_memory()
    for name in list(LAYERS)[-1:] if quick else LAYERS:
        steps = candidates(name, size)
        found = compared(steps, rounds)
        del steps[PLAIN]
        plain_peak = peak_megabytes("steps", name, PLAIN, size) if not quick else None
        for what, (_, base, aim) in steps.items():
            peak = None
            if plain_peak and what in OF_MEMORY:
                peak = peak_megabytes("steps", name, what, size) / plain_peak
            yield Row(name, what, base, *found[what], aim, peak)
