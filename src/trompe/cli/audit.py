"""``trompe audit``."""

from __future__ import annotations

from rich.table import Table

from trompe import runs
from trompe.audit import AuditReport, audit
from trompe.cli.app import command, console
from trompe.cli.reading import default_out, read_case
from trompe.report.audit import write_audit
from trompe.report.words import named, number
from trompe.tuning.config import ELSEWHERE, AuditConfig


@command(
    AuditConfig,
    "trompe audit suspect.safetensors --model resnet18 --num-classes 10 --data photos/val",
    "trompe audit runs/mine --data photos/val --reference original.safetensors",
    "trompe audit mine.py:network --weights suspect.pth --data photos --explainer grad-cam",
)
def audit_(config: AuditConfig) -> None:
    """Ask whether a model's explanations were made to lie; write the evidence and a report.

    SUSPECT is a weights file, a run directory or the name of a model.
    """
    case = read_case(config)
    out = config.out or default_out("audit", config.suspect)
    settings = config.model_dump(mode="json", exclude=ELSEWHERE)
    with runs.opened(out, settings, runs.fingerprint(case.suspect, len(case.data))):
        found = audit(
            case.suspect,
            case.data,
            case.reference,
            explainers=case.explainers,
            calibration=case.calibration,
            **config.model_dump(include={"seed", "batch_size", "quiet"}),
        )
        found.save(out / "evidence")
        if not config.quiet:
            _show(found)
        page = write_audit(out, found, case.data)
        console.print(found.sentence, soft_wrap=True)
        console.print(f"Report: {page}", soft_wrap=True)


def _show(found: AuditReport) -> None:
    table = Table("evidence", "explainer", "score", "honest models", "suspicion")
    for section, of in found.evidence.groupby("section", sort=False):
        table.add_section()
        title = "against the reference" if section == "reference" else "the model alone"
        table.add_row(f"[bold]{title}[/]")
        worst = of.sort_values("suspicion", ascending=False).drop_duplicates("kind")
        for row in worst.sort_index().to_dict("records"):
            table.add_row(
                row["kind"],
                named(row["explainer"]),
                number(row["score"]),
                f"{number(row['normal_low'])} to {number(row['normal_high'])}",
                number(row["suspicion"], 1),
            )
    console.print(table)
    console.print(
        "The most suspicious explainer of each kind. Suspicion: 0 as the median of honest models, "
        "1 as the most suspicious 5 % of them."
    )
