"""Repair the manipulated models of a zoo that `trompe calibrate` made: how near do the maps come?

    python docs/results/audit/repair.py CIFAR10 RUNS/calibrate OUT [PATTERN ...]

Every manipulated model that took and has a name like that. One row per model and attempt (of the
fine-tunings the two longest) in OUT/MODEL.csv: accuracy on 1,000 validation images and, on 150 of
them, the rank correlation of every explainer's maps with those of the model before. The untouched
base has a file too: what the same does to an honest model. What is there is kept.
"""

import sys
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
import torch

from trompe.audit.auditor import explainable
from trompe.audit.calibrate import FOOLED, explainers_at, success
from trompe.audit.observe import informative
from trompe.audit.probe import make_probe
from trompe.audit.removal import on_grid
from trompe.audit.retrained import predictions
from trompe.audit.zoo import load_zoo
from trompe.data import load_data
from trompe.data.kept import Kept
from trompe.data.subset import parted
from trompe.evaluation.accuracy import accuracy
from trompe.explainers import Recording
from trompe.maps import spearman
from trompe.repair import STEPS, attempts

TRAINED, JUDGED, EXPLAINED = 8000, 1000, 150


class Judge:
    """Validation images, and the maps of an untouched base on them."""

    def __init__(self, base, member, root):
        model, preprocessing = base.load(root)
        data = load_data(member.settings["eval_data"], preprocessing, limit=JUDGED, seed=7)
        self.data = Kept(data)
        self.images = torch.stack([self.data[row][0] for row in range(EXPLAINED)])
        self.classes = predictions(model, self.data)[:EXPLAINED]
        used = explainable(model, self.images[:1], explainers_at(member.layer))
        self.explainers = informative(model, make_probe(model, self.data), used)
        self.maps = self._maps(model)

    @torch.no_grad()
    def _maps(self, model):
        with Recording(model, self.explainers) as forward:
            forward(self.images)
            maps = [on_grid(m) for m in forward.heatmaps(self.classes)]
        names = [e.family for e in self.explainers]
        return dict(zip(names, maps, strict=True))

    def __call__(self, model):
        """Accuracy, and how near the maps are to the base's."""
        model.eval()
        maps = self._maps(model)
        near = {name: float(spearman(maps[name], m).mean()) for name, m in self.maps.items()}
        return {"accuracy": accuracy(model, self.data)[0]} | near


def main(cifar, root, out, *patterns):
    """Repair one model after the other."""
    root, out = Path(root), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    zoo = load_zoo(None, cifar)
    chosen = [m for m in zoo if any(fnmatch(m.name, pattern) for pattern in patterns or ["*"])]
    for member in chosen:
        lies = member.manipulated and success(member, root) >= FOOLED
        path = out / f"{member.name}.csv"
        if path.exists() or not (lies or member.treatment == "base"):
            continue
        model, preprocessing = member.load(root)
        network = (member.family, member.dataset, "base")
        base = next(m for m in zoo if (m.family, m.dataset, m.treatment) == network)
        judge = Judge(base, member, root)
        data = load_data(member.settings["data"], preprocessing, limit=TRAINED, seed=7)
        clean, _ = parted(data, 0)
        lengths = STEPS[-2:] if lies else STEPS
        stages = attempts(model, Kept(clean), clean.labels, lengths)
        table = pd.DataFrame([{"stage": stage} | judge(made) for stage, made in stages])
        table.insert(0, "model", member.name)
        table.to_csv(path, index=False)
        print(table.to_string(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
