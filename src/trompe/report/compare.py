"""Several runs side by side: what differs in their settings, and what came of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from trompe import runs
from trompe.errors import TrompeError
from trompe.evaluation import schema
from trompe.evaluation.schema import CONTROL, MANIPULATED, ORIGINAL
from trompe.report import words
from trompe.report.html import write_page
from trompe.report.run import Run, read_run
from trompe.report.sheets import uri
from trompe.report.tables import Cell, Matrix
from trompe.report.trade_off import draw
from trompe.report.transfer import records

NOT_COMPARED = {"eval_explainer"}  # said by the rows of the tables
PICTURE = "trade-off.png"


@dataclass(frozen=True)
class Comparison:
    """What several runs have in common and what not.

    Attributes
    ----------
    settings
        The settings that differ as text: a row for each run, by name, and a column for each.
    rates
        The table `schema.COMPARED_RATES`, shares in [0, 1].
    runs
        The table `schema.COMPARED`, shares in [0, 1].
    notes
        What to know before the runs are compared, in sentences.
    read
        The runs themselves, by name.
    """

    settings: pd.DataFrame
    rates: pd.DataFrame
    runs: pd.DataFrame
    notes: Sequence[str]
    read: Mapping[str, Run]

    def save(self, directory: Path) -> None:
        """Write the tables as CSV and the picture as PNG and SVG."""
        tables = {"settings": self.settings.rename_axis("run").reset_index(), "rates": self.rates}
        for name, table in {**tables, "runs": self.runs}.items():
            with runs.replacing(directory / f"{name}.csv") as new:
                runs.write_csv(table, new)
        figure = draw(self.runs)
        for path in (directory / PICTURE, (directory / PICTURE).with_suffix(".svg")):
            with runs.replacing(path) as new:
                figure.savefig(new, format=path.suffix[1:], dpi=200)


def compare(paths: Mapping[str, Path]) -> Comparison:
    """Read run directories that hold an evaluation, by name, and put them side by side.

    Raises
    ------
    TrompeError
        If there are fewer than two, or one is no run directory or was not evaluated.
    """
    if len(paths) < 2:
        raise TrompeError("Two runs or more are compared; give their directories.")
    read = {name: read_run(path) for name, path in paths.items()}
    for run in read.values():
        if run.accuracy is None or run.explanations is None:
            raise TrompeError(
                f"The run '{run.path}' was not evaluated: there is nothing to compare. Give its "
                "command --eval-data, or compare what trompe evaluate wrote of it."
            )
    texts = {
        name: {key: " ".join(words.listed(value)) for key, value in run.settings.items()}
        for name, run in read.items()
    }
    settings = pd.DataFrame.from_dict(texts, orient="index").fillna("").astype(str)
    differ = [c for c in settings if len(set(settings[c])) > 1 and c not in NOT_COMPARED]
    rates = pd.concat(
        [
            run.explanations[run.explanations["model"] == MANIPULATED].assign(run=name)
            for name, run in read.items()
            if run.explanations is not None
        ]
    )[list(schema.COMPARED_RATES)]
    table = pd.DataFrame([_row(name, run) for name, run in read.items()])
    table["front"] = front(table["top1"].tolist(), table["fsr"].tolist())
    return Comparison(
        settings[differ],
        rates,
        table[list(schema.COMPARED)],
        _notes(list(read.values()), table),
        read,
    )


def front(accuracy: Sequence[float], success: Sequence[float]) -> list[bool]:
    """Whether no other is better in one of the two and as good in the other."""
    points = list(zip(accuracy, success, strict=True))
    return [
        not math.isnan(b) and not any(x >= a and y >= b and (x, y) != (a, b) for x, y in points)
        for a, b in points
    ]


def write_comparison(found: Comparison, directory: Path, program: str, command: str) -> Path:
    """Write the tables, the picture and ``report.html`` of a comparison.

    Parameters
    ----------
    program, command
        The command's name, and all of it.

    Raises
    ------
    TrompeError
        If the directory holds a run, or can't be written.
    """
    if (directory / runs.CONFIG).exists():
        raise TrompeError(f"'{directory}' holds a run; choose another directory for the page.")
    with runs.locked(directory):
        found.save(directory)
        picture = uri(np.asarray(Image.open(directory / PICTURE).convert("RGB")))
        links = {name: _link(run.path, directory) for name, run in found.read.items()}
        return write_page(
            directory / "report.html",
            "compare.html.j2",
            program=program,
            title=directory.resolve().name,
            headline=headline(found.runs),
            summary=_summary(found),
            settings=found.settings,
            runs=records(found.runs),
            links=links,
            matrices=_matrices(found, links),
            picture=picture,
            notes=found.notes,
            command=command,
        )


def headline(table: pd.DataFrame) -> str:
    """Say in one sentence how far the runs go."""
    fooled = [words.percent(share) for share in sorted(table["fsr"])]
    changed = [words.points(-drop) for drop in sorted(table["drop"], reverse=True)]
    return (
        f"{len(table)} runs fool {_between(fooled[0], fooled[-1])} of images; top-1 changes by "
        f"{_between(changed[0], changed[-1])} points."
    )


def _between(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _summary(found: Comparison) -> str:
    differ = words.joined([str(c) for c in found.settings])
    best = words.joined(list(found.runs.loc[found.runs["front"], "run"]))
    said = f"They differ in {differ}." if differ else "Their settings are the same."
    return f"{said} On the front, where more success costs accuracy: {best}."


def by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """Directories by their names, or by their whole paths where two have the same name."""
    names = [path.resolve().name for path in paths]
    told = names if len(set(names)) == len(names) else [str(path) for path in paths]
    return dict(zip(told, paths, strict=True))


def _row(name: str, run: Run) -> dict[str, Any]:
    assert run.accuracy is not None
    assert run.explanations is not None
    models = {row["model"]: row for row in records(run.accuracy)}
    lies = run.explanations[run.explanations["model"] == MANIPULATED]
    lies = lies[lies["attacked"]] if lies["attacked"].any() else lies
    least = records(lies.sort_values("fsr"))[0]
    lied, before = models[MANIPULATED], models[ORIGINAL]["top1"]
    return {
        "run": name,
        **{key: lied[key] for key in ("images", "top1", "top1_low", "top1_high")},
        "original_top1": before,
        "control_top1": models[CONTROL]["top1"] if CONTROL in models else math.nan,
        "drop": before - lied["top1"],
        **{key: least[key] for key in ("fsr", "fsr_low", "fsr_high", "untouched", "control")},
    }


def _notes(read: Sequence[Run], table: pd.DataFrame) -> list[str]:
    notes = []
    if len({run.evaluation.images.get("data") for run in read if run.evaluation}) > 1:
        notes.append("The runs were not judged on the same images: compare their intervals.")
    if len(set(table["original_top1"])) > 1:
        notes.append("The runs do not start from the same model, or were judged on other images.")
    return notes


def _matrices(found: Comparison, links: Mapping[str, str]) -> list[Matrix]:
    """For each objective and target, a line per run and a column per explainer."""
    labels = {key: label for run in found.read.values() for key, label in _labels(run).items()}
    matrices = []
    for (objective, target), rows in found.rates.groupby(["objective_id", "target"], sort=False):
        explainers = list(dict.fromkeys(rows["explainer_id"]))
        lines: list[tuple[str, str, list[Cell | None]]] = []
        for name in dict.fromkeys(rows["run"]):
            own = {r["explainer_id"]: r for r in records(rows[rows["run"] == name])}
            cells = {e: _cell(row, labels[e], links[name]) for e, row in own.items()}
            lines.append((name, "", [cells.get(e) for e in explainers]))
        where = "" if target == "label" else f", {target}"
        title = f"Fooled in %: {labels[str(objective)]}{where}"
        matrices.append(Matrix(title, [labels[e] for e in explainers], lines, head="Run"))
    return matrices


def _labels(run: Run) -> dict[str, str]:
    return {key: words.subscript(str(told["label"])) for key, told in run.legend.items()}


def _cell(row: Mapping[str, Any], label: str, link: str) -> Cell:
    beside = {key: row[key] for key in ("untouched", "control", "empty")}
    known = {key: share for key, share in beside.items() if not math.isnan(share)}
    return Cell(
        float(row["fsr"]),
        label,
        f"95 % interval {words.span(row['fsr_low'], row['fsr_high'])}",
        bool(row["attacked"]),
        [
            words.span(row["fsr_low"], row["fsr_high"]),
            *(f"{name} {100 * share:.1f}" for name, share in known.items()),
        ],
        link,
    )


def _link(path: Path, directory: Path) -> str:
    return Path(os.path.relpath(path / "report.html", directory)).as_posix()
