"""Does the consensus see through a lie? Its rank correlation with that of the model before.

    python docs/results/audit/consensus.py CIFAR10 RUNS/calibrate OUT.csv [PATTERN ...]

One row per model of the zoo that `trompe calibrate` made, with a name like that, of those that
were made from a base or learnt the same from another seed: 50 validation images, the consensus of
`trompe.audit.consensus` and each of its explainers by itself.
"""

import sys
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
import torch

from trompe.audit.consensus import AT_INPUT, consensus
from trompe.audit.removal import on_grid
from trompe.audit.zoo import load_zoo
from trompe.data import load_data
from trompe.data.kept import Kept
from trompe.evaluation.accuracy import predictions
from trompe.maps import spearman

EXPLAINED = 50


def explained(model, images, classes):
    """From a name to its maps."""
    maps = {e.name: on_grid(e.heatmap(e(model, images, classes)).detach()) for e in AT_INPUT}
    return {"consensus": consensus(model, images, classes)} | maps


def main(cifar, root, out, *patterns):
    """Explain one model after the other."""
    root, zoo, before, rows = Path(root), load_zoo(None, cifar), {}, []
    bases = {(m.family, m.dataset): m for m in zoo if m.treatment == "base"}
    for member in zoo:
        if member.treatment == "base" or not any(fnmatch(member.name, p) for p in patterns or "*"):
            continue
        network = (member.family, member.dataset)
        if network not in before:
            base, preprocessing = bases[network].load(root)
            source = member.settings["eval_data"]
            data = Kept(load_data(source, preprocessing, limit=EXPLAINED, seed=7))
            images = torch.stack([data[row][0] for row in range(EXPLAINED)])
            classes = predictions(base, data)
            before[network] = images, classes, explained(base, images, classes)
        images, classes, original = before[network]
        maps = explained(member.load(root)[0], images, classes)
        near = {name: float(spearman(maps[name], m).nanmean()) for name, m in original.items()}
        rows.append({"model": member.name, "manipulated": member.manipulated} | near)
        print(rows[-1], flush=True)
        pd.DataFrame(rows).round(4).to_csv(out, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
