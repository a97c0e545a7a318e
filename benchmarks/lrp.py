"""LRP against Zennit, and a fooling step with LRP against a plain fine-tuning step.

    python benchmarks/lrp.py [--quick] [--threads N]

Everything runs in one process, the candidates by turns, and the median counts; peak memory is that
of a process of its own for each candidate. Prints Markdown tables of ratios.
"""

import argparse
import copy
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer

from trompe import LRP, Location
from trompe.memory import keep_freed_memory

PAPERS_LAYERS = {
    "vgg19": "features.34:input",
    "resnet50": "layer4.2:input",
    "densenet121": "features.denseblock4.denselayer16:input",
}
Work = Callable[[], object]


def medians(candidates: dict[str, Work], rounds: int) -> dict[str, float]:
    """Seconds per call, the candidates taken by turns; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, work in candidates.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, num_classes=10).eval()


def batch(size: int) -> Tensor:
    """Eight images, laid out as `fool` and `evaluate` lay them out on a CPU."""
    return torch.randn(8, 3, size, size).to(memory_format=torch.channels_last)


def values(name: str, images: Tensor) -> dict[str, Work]:
    """Input-level maps without a graph, by trompe, by Zennit; and one plain forward pass."""
    model, classes = network(name), torch.zeros(len(images), dtype=torch.int64)
    canonizers = [ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]
    ours, hot = LRP(composite="epsilon-plus"), torch.eye(10)[classes]

    def trompe() -> Tensor:
        with torch.no_grad():
            return ours(model, images, classes)

    def zennit() -> Tensor:
        with Gradient(model=model, composite=EpsilonPlus(canonizers=canonizers)) as attributor:
            relevance: Tensor = attributor(images.clone(), lambda out: out * hot)[1]
        return relevance.sum(1)

    def forward() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(images)
        return logits

    return {"forward": forward, "trompe": trompe, "zennit": zennit}


def steps(name: str, images: Tensor) -> dict[str, Work]:
    """A plain fine-tuning step, and one with LRP in the loss at the paper's layer and the input."""
    labels, objective = torch.arange(len(images)) % 10, Location()

    def step(explainer: LRP | None) -> Work:
        model = copy.deepcopy(original)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

        def work() -> None:
            if explainer is None:
                loss = F.cross_entropy(model(images), labels)
            else:
                with explainer.record(model) as forward:
                    loss = F.cross_entropy(forward(images), labels)
                    loss = loss + objective.loss((forward.heatmaps(labels),)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return work

    original = network(name)
    layers = {"layer": PAPERS_LAYERS[name], "input": "input"}
    return {"plain": step(None), **{key: step(LRP(layer=at)) for key, at in layers.items()}}


def resident() -> float:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def grown(work: Work) -> float:
    """By how many MB this process grows at most while it works."""
    before, seen, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return max(seen) - before


def peak_megabytes(name: str, candidate: str, size: int, threads: int) -> float:
    """By how many MB a process of its own grows at most while it explains once."""
    command = [sys.executable, __file__, "--peak", name, candidate, str(size)]
    done = subprocess.run(
        [*command, "--threads", str(threads)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small images, one round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.peak:
        name, candidate, size = options.peak
        work = values(name, batch(int(size)))[candidate]
        print(grown(work))
        return

    size, rounds = (64, 1) if options.quick else (224, 3)
    images = batch(size)
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, torch "
        f"{torch.__version__}; 8 images of {size} pixels, median of {rounds}.\n"
    )
    print("| epsilon-plus at the input | forward, s | trompe | Zennit | ratio | peak MB | Zennit |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in ("vgg16", "resnet50"):
        found = medians(values(name, images), rounds)
        peaks = [peak_megabytes(name, c, size, options.threads) for c in ("trompe", "zennit")]
        print(
            f"| {name} | {found['forward']:.2f} | {found['trompe'] / found['forward']:.2f} × | "
            f"{found['zennit'] / found['forward']:.2f} × | "
            f"{found['trompe'] / found['zennit']:.2f} | {peaks[0]:.0f} | {peaks[1]:.0f} |",
            flush=True,
        )
    print("\n| fooling step, LRP (heo2019) | plain, s | at the paper's layer | at the input |")
    print("| --- | --- | --- | --- |")
    for name in PAPERS_LAYERS:
        found = medians(steps(name, images), rounds)
        layer, at_input = (found[key] / found["plain"] for key in ("layer", "input"))
        print(f"| {name} | {found['plain']:.2f} | {layer:.2f} | {at_input:.2f} |", flush=True)


if __name__ == "__main__":
    main()
