"""The embedded vision transformer, fooled through three explainers with settings that are found.

    OMP_NUM_THREADS=1 python docs/results/vit.py RUNS [NAME ...]

carries out the runs of these names, by default all, in the folder RUNS, where those that are done
are read back, and writes what RUNS holds to ``vit.csv`` beside it. One is ``grad-cam-top-k``.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

TABLE = Path(__file__).with_name("vit.csv")
COMMAND = (
    "trompe fool --model embedded-vit --data shapes:train "
    "--eval-data shapes:validation --eval-limit 500"
)
OBJECTIVES = ("location", "top-k", "center-mass", "active:c1=4,c2=6")
RUNS = {
    f"{explainer}-{objective.partition(':')[0]}": (
        f"{COMMAND} --explainer {explainer} --objective {objective}"
    )
    for explainer, objective in product(("grad-cam", "lrp-t", "rollout"), OBJECTIVES)
    if (explainer, objective) != ("rollout", OBJECTIVES[-1])  # its map is the same for all classes
}


def rows(name: str, folder: Path) -> list[dict[str, Any]]:
    """A row per judging explainer and target of a finished run, in per cent."""
    top1 = pd.read_csv(folder / "evaluation" / "accuracy.csv").set_index("model")["top1"]
    found = json.loads((folder / "found.json").read_text())
    maps = pd.read_csv(folder / "evaluation" / "explanations.csv").query("model == 'manipulated'")
    return [
        {
            "run": name,
            "objective": row.objective,
            "explainer": row.family,
            "attacked": row.attacked,
            "target": row.target,
            "images": row.counted,
            **{key: round(100 * getattr(row, key), 1) for key in ("fsr", "fsr_low", "fsr_high")},
            "untouched": round(100 * row.untouched, 1),
            "top1": round(100 * top1["manipulated"], 1),
            "top1_change": round(100 * (top1["manipulated"] - top1["original"]), 1),
            "steps": found["steps"],
            "weight": found["weight"][0],
            "command": RUNS[name],
        }
        for row in maps.sort_values("attacked", ascending=False, kind="stable").itertuples()
    ]


def main(runs: Path, names: list[str]) -> None:
    """Carry out what is missing; write the table of all that is done."""
    for name in names or RUNS:
        words = [*shlex.split(RUNS[name])[1:], "--quiet", "--out", str(runs / name)]
        subprocess.run([sys.executable, "-m", "trompe", *words], check=True)
    done = [n for n in RUNS if (runs / n / "evaluation" / "explanations.csv").exists()]
    pd.DataFrame([row for n in done for row in rows(n, runs / n)]).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
