"""Peak memory and time against size: of evaluate, explain, audit, reproduce and a report.

    OMP_NUM_THREADS=1 python docs/results/load.py WORK [CASE ...] [--share 0.1]

runs each case at a tenth, at half and at the whole of its size (or of a share of it), with images
of 12 pixels and a network of a few hundred weights, so that what grows is not theirs. Each is a
fork of this process, which has imported everything; its memory is counted from there. What
``load.csv`` beside this file holds is not measured again.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from faults import GRID, MODEL, NETWORKS, ended, make_inputs, picture, started, warm_up

from trompe.experiments import load_grid

TABLE = Path(__file__).with_name("load.csv")
WHOLE = {"evaluate": 50_000, "explain": 20_000, "audit": 10_000, "reproduce": 200, "report": 200}
UNITS = {
    "evaluate": "rows of a parquet file",
    "explain": "image files",
    "audit": "classes",
    "reproduce": "cells, all but one finished",
    "report": "images in the report of evaluate",
}
EVALUATE = f"evaluate {MODEL} --weights base.safetensors --manipulated lie --explainer grad-cam "
EVALUATE += "--quiet --out run --data {} --gallery {}"


def rows(folder: Path, count: int) -> None:
    """Write a table of images and labels."""
    cells = []
    drawn = np.random.default_rng(0)
    for number in range(count):
        held = io.BytesIO()
        picture(drawn, number % 3).save(held, "png")
        cells.append({"bytes": held.getvalue(), "path": f"{number}.png"})
    labels = [number % 3 for number in range(count)]
    pq.write_table(pa.table({"image": cells, "label": labels}), folder / "rows.parquet")


def files(folder: Path, count: int) -> None:
    """Write image files, a thousand in a folder."""
    drawn = np.random.default_rng(0)
    for number in range(count):
        place = folder / "files" / str(number // 1000)
        place.mkdir(parents=True, exist_ok=True)
        picture(drawn, number % 3).save(place / f"{number}.png")


def cells(folder: Path, count: int) -> None:
    """Lay out a grid of so many lies, and copy one that is finished to all but one."""
    lies = {f"location:high={1 + i / 1000}": {"grad-cam": {"one": {}}} for i in range(count)}
    layout = GRID | {"passive": {"cells": lies}}
    (folder / "grid.yaml").write_text(yaml.safe_dump(layout))
    words = "reproduce --scale grid.yaml --jobs 1 --out run"
    before = Path.cwd()
    os.chdir(folder)  # which the names of the cells depend on
    grid = load_grid("grid.yaml")
    os.chdir(before)
    _, first, *others = grid.cells
    code = ended(started(folder, [*words.split(), "--cells", first.name], lambda: None))
    assert code == 0, (folder / "said.log").read_text()
    for cell in others[:-1]:
        shutil.copytree(folder / "run" / first.folder, folder / "run" / cell.folder)


def prepared(case: str, size: int, folder: Path) -> str:
    """Make what a case reads; its command line."""
    if case == "evaluate":
        rows(folder, size)
        return EVALUATE.format("rows.parquet", 12)
    if case == "report":
        rows(folder, size)
        return EVALUATE.format("rows.parquet", size)
    if case == "explain":
        files(folder, size)
        return f"explain {MODEL} --weights base.safetensors --images files --out run"
    if case == "audit":
        return (
            f"audit nets.py:normed --num-classes {size} --data few --explainer grad-cam --out run"
        )
    cells(folder, size)
    return "reproduce --scale grid.yaml --jobs 1 --out run"


def measured(case: str, size: int, inputs: Path, folder: Path) -> dict[str, object]:
    """Run a case; its peak memory beyond what the fork began with, and its time."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs, folder)
    words = prepared(case, size, folder).split()

    def prepare() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        begun = status("VmHWM")
        leave = os._exit

        def told(code: int) -> None:
            cpu = time.process_time()
            Path("measured.txt").write_text(f"{status('VmHWM') - begun} {cpu}")
            leave(code)

        os._exit = told  # type: ignore[assignment]

    code = ended(started(folder, words, prepare), hours=2)
    assert code == 0, (folder / "said.log").read_text()[-2000:]
    peak, cpu = (folder / "measured.txt").read_text().split()
    return {
        "case": case,
        "size": size,
        "of": UNITS[case],
        "peak_mb": round(int(peak) / 1024),
        "cpu_s": round(float(cpu), 1),
    }


def status(name: str) -> int:
    """A figure of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def main() -> None:
    """Measure what was not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("cases", nargs="*", default=[])
    parser.add_argument("--share", type=float, default=1.0)
    given = parser.parse_args()
    work = given.work.resolve()
    warm_up()
    inputs = work / "inputs"
    if not inputs.exists():
        inputs.mkdir(parents=True)
        (inputs / "nets.py").write_text(NETWORKS)
        make_inputs(inputs)
    found = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    for case in given.cases or WHOLE:
        for part in (0.1, 0.5, 1.0):
            size = round(WHOLE[case] * given.share * part)
            if any((row["case"], row["size"]) == (case, size) for row in found):
                continue
            found.append(measured(case, size, inputs, work / "attempt"))
            print(found[-1], flush=True)
            pd.DataFrame(found).sort_values(["case", "size"]).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()
