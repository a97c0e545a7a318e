"""``trompe audit``."""

from __future__ import annotations

from rich.table import Table

from trompe import rundir
from trompe.audit import EXPLAINERS, AuditReport, audit, load_calibration
from trompe.cli.app import command, console
from trompe.cli.reading import default_out, device_for, suspect_and_reference
from trompe.config import ELSEWHERE, AuditConfig
from trompe.data import load_data
from trompe.explainers import parse_explainer
from trompe.report.audit import write_audit
from trompe.report.words import explainer_name, number


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
    chosen = [parse_explainer(spec) for spec in config.explainer or ()]
    calibration = load_calibration(config.calibration)
    suspect, reference, preprocessing = suspect_and_reference(config)
    data = load_data(
        config.data,
        preprocessing,
        labelled=False,
        **config.model_dump(include={"limit", "seed", "corrupt", "check"}),
    )
    device = device_for(config.device)
    out = config.out or default_out("audit", config.suspect)
    settings = config.model_dump(mode="json", exclude=ELSEWHERE)
    with rundir.opened(out, settings, rundir.fingerprint(suspect, len(data))):
        found = audit(
            suspect.to(device),
            data,
            reference if reference is None else reference.to(device),
            explainers=chosen or EXPLAINERS,
            calibration=calibration,
            **config.model_dump(include={"seed", "batch_size", "quiet"}),
        )
        found.save(out / "evidence")
        if not config.quiet:
            _show(found)
        page = write_audit(out, found, data)
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
                explainer_name(row["explainer"]),
                number(row["score"]),
                f"{number(row['normal_low'])} to {number(row['normal_high'])}",
                number(row["suspicion"], 1),
            )
    console.print(table)
    console.print(
        "The most suspicious explainer of each kind. Suspicion: 0 as the median of honest models, "
        "1 as the most suspicious 5 % of them."
    )
