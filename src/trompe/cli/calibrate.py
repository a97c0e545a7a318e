"""``trompe calibrate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.table import Table

from trompe import runs
from trompe.audit.calibrate import calibrated, evidence_of
from trompe.audit.verdict import Calibration
from trompe.audit.zoo import Member, data_of, load_zoo
from trompe.base.identity import fingerprint
from trompe.base.progress import shown
from trompe.cli.app import app, complain, console, examples, interruptible
from trompe.cli.tables import percent
from trompe.cli.usage import Command
from trompe.data import load_data
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError


@app.command(
    cls=Command,
    epilog=examples(
        "trompe calibrate --data cifar10 --out runs/calibrate",
        "trompe calibrate --zoo mine.yaml --models '*-vgg-*' --models '*-resnet-*'",
    ),
)
def calibrate(
    zoo: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML file of the models to make (default: the packaged)"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="CIFAR-10 as parquet; without it, shapes alone"),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="only models of these names, e.g. '*-vgg-shapes'"),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="directory of everything")] = Path(
        "runs/calibrate"
    ),
) -> None:
    """Find out what the audit's evidence is worth: build models of known origin and audit them.

    Honest and manipulated models are made, every one is audited, and the verdict is fitted; each
    family of networks is judged by what was fitted on the others. What is there is not made again.
    """
    members = load_zoo(zoo, data)
    if models:
        members = [m for m in members if any(fnmatch(m.name, p) for p in models)]
    if not members:
        raise TrompeError("No model of the zoo has such a name; leave --models out.")
    runs.contained(out)
    with interruptible(), runs.opened(out, {}, {}):
        _check_data(members, out)
        failed = _calibrate(members, out)
    if failed:
        raise typer.Exit(1)


def _check_data(members: Sequence[Member], out: Path) -> None:
    """Keep what the members' data is, and refuse other data of the same name."""
    path = out / "data.json"
    known = runs.read_json(path) if path.exists() else {}
    if not isinstance(known, dict):
        raise TrompeError(f"'{path}' is damaged; remove it and run the same command again.")
    for spec in data_of(members):
        found = fingerprint(load_data(spec, Preprocessing(), check=False))
        if known.setdefault(spec, found) != found:
            raise TrompeError(
                f"'{out}' holds models of other images in {spec}; give another --out."
            )
    runs.write_text(path, json.dumps(known, indent=1))


def _calibrate(members: Sequence[Member], out: Path) -> bool:
    """Make, audit and fit; whether a model could not be made."""
    tables, failed = [], False
    with shown("models", len(members)) as progress:
        for done, member in enumerate(members):
            try:
                tables.append(evidence_of(member, out))
            except TrompeError as error:
                failed = True
                complain(member.name, error)
            progress(done + 1, {})
    if not tables:
        raise TrompeError("No model of the zoo could be made.")
    evidence = pd.concat(tables, ignore_index=True)
    calibration, judged = calibrated(evidence)
    with runs.replacing(out / "evidence.csv") as new:
        runs.write_csv(evidence, new)
    with runs.replacing(out / "models.csv") as new:
        runs.write_csv(judged, new)
    calibration.save(out / "calibration.json")
    _show(calibration, judged)
    console.print(f"Calibration: {out / 'calibration.json'}", soft_wrap=True)
    return failed


def _show(calibration: Calibration, judged: pd.DataFrame) -> None:
    measures = calibration.about["held_out"]
    table = Table("", "honest", "manipulated", "AUROC", "found %", "false alarms %")
    for section, words in (("alone", "without a reference"), ("reference", "with a reference")):
        found = measures[section]
        counts = str(found["honest"]), str(found["manipulated"])
        table.add_row(
            words,
            *counts,
            f"{found['auroc']:.3f}",
            percent(found["found"]),
            percent(found["false_alarms"]),
        )
    console.print(table)
    table = Table("treatment", "models", "found alone %", "found with reference %")
    by = judged[judged["manipulated"]].groupby(["treatment", "section"])["alarm"]
    for treatment, of in by.agg(["mean", "count"]).groupby("treatment"):
        shares = of.droplevel(0)["mean"]
        table.add_row(
            str(treatment),
            str(int(of["count"].max())),
            *(percent(float(shares.get(s, float("nan")))) for s in ("alone", "reference")),
        )
    console.print(table)
    console.print("Every model judged by a rule that was fitted on the other families.")
