"""The tables of this page, from the runs of ``trompe reproduce all --scale imagenette``.

    python docs/results/imagenette/tables.py RUNS [RUNS ...]

A cell that stands in several directories counts where it is named first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
RATES = {"network": "network", "objective": "objective", "through": "attacked"}
RATES |= {"family": "explainer", "target": "target", "images": "images", "fsr": "fsr"}
RATES |= {name: name for name in ("fsr_low", "fsr_high", "untouched", "control", "empty")}
RATES |= {"paper_fsr": "paper"}
ACCURACY = {"network": "network", "objective": "objective", "through": "attacked"}
ACCURACY |= {name: name for name in ("top1", "top5", "original_top1", "control_top1")}
ORDER = ["DenseNet121", "ResNet50", "VGG19", "ResNet18"]


def table(runs: list[Path], name: str, columns: dict[str, str]) -> pd.DataFrame:
    """The finished cells of all directories, in the page's order."""
    found = [pd.read_csv(directory / "tables" / f"{name}.csv") for directory in runs]
    finished = [rows[rows["finished"]] for rows in found]
    key = [c for c in ("cell", "family", "target") if c in finished[0]]
    rows = pd.concat(finished).drop_duplicates(key)[list(columns)].rename(columns=columns)
    place = rows["network"].map(ORDER.index)
    return rows.assign(place=place).sort_values("place", kind="stable").drop(columns="place")


def main() -> None:
    """Read the command line."""
    runs = [Path(word) for word in sys.argv[1:]]
    for name, columns in (("rates", RATES), ("accuracy", ACCURACY)):
        table(runs, name, columns).round(4).to_csv(HERE / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
