"""Run the benchmarks; write a page, a table and a chart of each section.

    python -m benchmarks [steps|explanations|evaluation ...] [--quick] [--out DIR]

Everything runs in one process, each candidate right after what it is compared with, and the median
of these ratios counts; peak memory is that of the tensors of a process of its own for each
candidate. Nothing else should run on the machine.
"""

import argparse
import platform
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

from benchmarks import evaluation, explanations, steps
from benchmarks.measure import Row, peak_of

# The steps last: they run as the command line runs them, with memory that is kept.
SECTIONS = {"explanations": explanations, "evaluation": evaluation, "steps": steps}


def processor() -> str:
    """What the machine calls its processor."""
    lines = Path("/proc/cpuinfo")
    names = [line for line in lines.read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.machine()


def page(section: str, rows: pd.DataFrame, how: str) -> str:
    """The results of a section as a Markdown page."""
    lines = [f"# {section.capitalize()}", "", how, "", f"![Ratios]({section}.png)", ""]
    lines += ["| network | | seconds | ratio | to | aim | peak memory, ratio |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows.itertuples():
        aim, peak = (f"{x:.2f}" if x == x else "" for x in (row.aim, row.peak_ratio))
        lines.append(
            f"| {row.network} | {row.what} | {row.seconds:.2f} | {row.ratio:.2f} | {row.base} "
            f"| {aim} | {peak} |"
        )
    return "\n".join([*lines, ""])


def chart(rows: pd.DataFrame, path: Path) -> None:
    """Bars of the ratios that have an aim, with a mark at the aim."""
    aimed = rows[rows["aim"].notna()].iloc[::-1].reset_index(drop=True)
    figure, axes = plt.subplots(figsize=(7, 0.24 * len(aimed) + 1), layout="constrained")
    missed = aimed["ratio"] > aimed["aim"]
    axes.barh(aimed.index, aimed["ratio"], color=["#d55e00" if m else "#0072b2" for m in missed])
    axes.scatter(aimed["aim"], aimed.index, marker="|", color="black", s=90, label="aim")
    axes.set_yticks(aimed.index, aimed["network"] + ", " + aimed["what"], fontsize=7)
    axes.set_ylim(-0.6, len(aimed) - 0.4)
    axes.set_xlabel("time, as a ratio to what it is compared with")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(section: str, rows: Iterable[Row], out: Path, how: str) -> None:
    """Print each row as it comes; write everything at the end."""
    found = []
    for row in rows:
        print(f"{row.network}, {row.what}: {row.ratio:.2f} of {row.base}", flush=True)
        found.append(row)
    table = pd.DataFrame(found).astype({"aim": float, "peak_ratio": float})
    out.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(out / f"{section}.csv", index=False)
    chart(table, out / f"{section}.png")
    (out / f"{section}.md").write_text(page(section, table, how))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument(
        "--quick", action="store_true", help="one network, small images: does it run?"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        section, name, candidate, size = options.peak
        print(peak_of(SECTIONS[section].candidates(name, int(size))[candidate][0]))
        return
    size, rounds = (64, 1) if options.quick else (224, 3)
    how = (
        f"`python -m benchmarks`: {processor()}, threads: {torch.get_num_threads()}, torch "
        f"{torch.__version__}; 8 images of {size} pixels, median of {rounds}, ratios "
        "within one process. A ratio is time against what the column *to* says; orange bars miss "
        "their aim."
    )
    for section in options.sections or SECTIONS:
        write(section, SECTIONS[section].measure(size, rounds, options.quick), options.out, how)


if __name__ == "__main__":
    main()
