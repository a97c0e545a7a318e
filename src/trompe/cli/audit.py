"""``trompe audit``."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from trompe import runs
from trompe.audit import DEFAULT, AuditReport, audit
from trompe.audit.evidence import read_kinds
from trompe.base.identity import fingerprint
from trompe.cli.app import command, console
from trompe.cli.foresight import DRY_RUN, foresee_audit
from trompe.cli.jobs import AuditJob
from trompe.cli.next_steps import after_audit, show_next
from trompe.cli.reading import default_out, read_case
from trompe.report.audit import write_audit
from trompe.report.words import family_name, number
from trompe.tuning.recipe import ELSEWHERE


@command(
    AuditJob,
    "trompe audit suspect.safetensors --model resnet18 --num-classes 10 \\\n--data photos/val",
    "trompe audit runs/mine --data photos/val --reference original.safetensors",
    "trompe audit mine.py:network --weights suspect.pth --data photos \\\n--explainer grad-cam",
)
def audit_(
    config: AuditJob,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help=DRY_RUN, rich_help_panel="Output")
    ] = False,
) -> None:
    """Ask whether a model's explanations were made to lie; write the evidence and a report.

    SUSPECT is a weights file, a run directory or the name of a model.
    """
    kinds = read_kinds([*DEFAULT, *(config.evidence or ())])
    case = read_case(config)
    if dry_run:
        foresee_audit(config, case, kinds)
        return
    out = config.out or default_out("audit", config.suspect)
    settings = config.model_dump(mode="json", exclude=ELSEWHERE)
    with runs.opened(out, settings, case.start | {"evidence": fingerprint(kinds)}):
        asked = partial(
            audit,
            case.suspect,
            case.data,
            case.reference,
            explainers=case.explainers,
            kinds=kinds,
            calibration=case.calibration,
            **config.model_dump(include={"seed", "batch_size", "quiet"}),
        )
        found = runs.part(out, "evidence", asked, AuditReport.load)
        if not config.quiet:
            _show(found)
        page = write_audit(out, found, case.data)
        console.print(found.sentence, soft_wrap=True)
        steps = after_audit(config, out, found.verdict.alarm)
        show_next(f"Report: {page}", steps, quiet=config.quiet)


def _show(found: AuditReport) -> None:
    table = Table("evidence", "explainer", "score", "honest models", "suspicion")
    for section, of in found.evidence.groupby("section", sort=False):
        table.add_section()
        title = "against the reference" if section == "reference" else "the model alone"
        table.add_row(Text(title, "bold"))
        worst = of.sort_values("suspicion", ascending=False).drop_duplicates("kind")
        for row in worst.sort_index().to_dict("records"):
            table.add_row(
                row["kind"],
                family_name(str(row["family"])),
                number(row["score"]),
                f"{number(row['normal_low'])} to {number(row['normal_high'])}",
                number(row["suspicion"], 1),
            )
    console.print(table)
    console.print(
        "The most suspicious explainer of each kind. Suspicion: 0 as the median of honest models, "
        "1 as the most suspicious 5 % of them."
    )
