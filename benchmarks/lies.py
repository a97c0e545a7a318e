"""Time to a lie: how long `fool` takes until a lie has taken and costs next to nothing.

    OMP_NUM_THREADS=1 python -m benchmarks.lies [NAME ...] [--runs FILE] [--out DIR]

``RUNS`` need nothing but the package; a YAML file can name more, as settings of `trompe fool`.
What is measured is processor time until 95 % of held-out training images are fooled at no more than
one point of top-1: of settings that are found, to the first judgement that says so; of settings by
hand, which do not look, to the last step. What is fooled in the end is judged on `eval_data` if the
run names it. Rows of the same name are replaced. Nothing should run beside it.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.__main__ import processor
from trompe import evaluate
from trompe.data.subset import Part, parted
from trompe.tuning.job import FoolJob
from trompe.tuning.pilot import JUDGED

FOOLED, LOST = 0.95, 1.0  # share of the images; points of top-1
BY_HAND = {"lr": 5e-3, "schedule": "one-cycle", "steps": 800, "batch_size": 16, "weight": [6.0]}
FAMILIES = ("embedded", "embedded-vgg", "embedded-resnet", "embedded-densenet", "embedded-vit")
EXPLAINERS = ("grad-cam", "lrp-t")
SHAPES = {"data": "shapes:train", "limit": 4000, "check": False}
RUNS: dict[str, dict[str, Any]] = {
    "embedded by hand, grad-cam": {"model": "embedded", **SHAPES, **BY_HAND},
    **{
        f"{model}, {explainer}": {"model": model, "explainer": [explainer], **SHAPES}
        for model in FAMILIES
        for explainer in EXPLAINERS
    },
    **{
        f"{model}, both": {"model": model, "explainer": list(EXPLAINERS), **SHAPES}
        for model in FAMILIES[:2]
    },
}


def measured(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One row: steps and processor time, and what they led to on held-out training images."""
    job = FoolJob(**settings, quiet=True)
    model, data, others = job.opened()
    tuned_on, held_out = parted(data, job.seed)
    judged_on = others or Part(held_out, range(min(JUDGED, len(held_out))))
    begun, clock = time.process_time(), []
    result = job.run(
        model,
        tuned_on if job.lr else data,
        on_step=lambda *_: clock.append(time.process_time() - begun),
    )
    steps = len(clock)
    if result.found:
        judged = result.history
        top1 = judged["held_out_top1"]
        lost = (100 * (top1.iloc[0] - top1)).round(6)
        good = judged["step"][(judged["held_out_success"] >= FOOLED) & (lost <= LOST)]
        steps = int(good.min()) if len(good) else steps
    found = evaluate(
        model, result.model, judged_on, explainers=job.explainer, objective=job.objective, gallery=0
    )
    rows = found.explanations.query("model == 'manipulated'")
    top1 = found.accuracy.set_index("model")["top1"]
    return {
        "run": name,
        "steps": steps,
        "core_minutes": round(clock[steps - 1] / 60, 2),
        "fooled": float(rows["fsr"].min()),
        "untouched": float(rows["untouched"].max()),
        "points": round(100 * (top1["manipulated"] - top1["original"]), 2),
        "images": f"{len(judged_on):,} {'new' if others else 'held-out training'}",
        "settings": "by hand" if job.lr else f"lr {result.found.lr:g}, {result.found.steps} steps",
    }


HOW = """
`OMP_NUM_THREADS=1 python -m benchmarks.lies` runs `fool` without rate, weight and steps, so that it
[finds them](../explanation/method.md#settings-that-are-found). Steps and processor time are counted
until 95 % of held-out training images are fooled at no more than one point of top-1, as measured by
the judgements every 50 steps. For settings by hand they are counted to the last step. The other
figures are for the model at the end, on new images where there are some. Networks that do not come
with the package are described in a file: `--runs FILE`.
"""


def page(table: pd.DataFrame) -> str:
    """The table as a Markdown page."""
    lines = ["# Time to a lie", HOW]
    columns = ["run", "steps", "core-minutes", "fooled %", "untouched %", "points of top-1"]
    columns += ["of images", "settings"]
    lines += [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [
        f"| {row.run} | {row.steps} | {row.core_minutes:.2f} | {100 * row.fooled:.1f} "
        f"| {100 * row.untouched:.1f} | {row.points:+.1f} | {row.images} | {row.settings} |"
        for row in table.itertuples()
    ]
    return "\n".join([*lines, "", f"Measured on {processor()}, one thread.", ""])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--runs", type=Path, help="YAML file: names, and settings of trompe fool")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    runs = RUNS if options.runs is None else yaml.safe_load(options.runs.read_text())
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "lies.csv"
    for name in options.names or runs:
        row = measured(name, runs[name])
        print(row, flush=True)
        known = [pd.read_csv(file).query("run != @name")] if file.exists() else []
        table = pd.concat([*known, pd.DataFrame([row])], ignore_index=True)
        table.to_csv(file, index=False)
        (options.out / "lies.md").write_text(page(table))


if __name__ == "__main__":
    main()
