"""``trompe repair``."""

from __future__ import annotations

from rich.table import Table

from trompe import runs
from trompe.base.identity import fingerprint
from trompe.cli.app import command, console
from trompe.cli.jobs import RepairJob
from trompe.cli.reading import default_out, read_case
from trompe.cli.tables import percent
from trompe.data.images import fingerprint_of
from trompe.models import save_weights
from trompe.repair import RepairResult, repair
from trompe.report.words import number
from trompe.tuning.recipe import ELSEWHERE


@command(RepairJob, "trompe repair runs/mine --data photos/train --out runs/repaired")
def repair_(config: RepairJob) -> None:
    """Restore a manipulated model's explanations by honest training.

    SUSPECT is a weights file, a run directory or the name of a model.
    """
    case = read_case(config)
    out = config.out or default_out("repair", config.suspect)
    settings = config.model_dump(mode="json", exclude=ELSEWHERE)
    with runs.opened(
        out, settings, {"weights": fingerprint(case.suspect), "data": fingerprint_of(case.data)}
    ):
        # The attempts, what is taken of them, and checkpoints.
        runs.require_space(out, case.suspect, len(config.steps) + 1 + 3)
        result = repair(
            case.suspect,
            case.data,
            case.reference,
            explainers=case.explainers,
            calibration=case.calibration,
            directory=out,
            **config.model_dump(
                include={"labels", "steps", "rate", "max_drop", "batch_size", "seed", "quiet"}
            ),
        )
        save_weights(result.model, out / "weights.safetensors")
        with runs.replacing(out / "stages.csv") as new:
            result.stages.to_csv(new, index=False)
        if not config.quiet:
            _show(result)
        console.print(f"Taken: {result.chosen}. Weights: {out / 'weights.safetensors'}")


def _show(result: RepairResult) -> None:
    right = "accuracy %" if result.labelled else "agrees with the suspect %"
    table = Table("attempt", "alarm", "sum", right, "maps like reference's")
    for row in result.stages.to_dict("records"):
        table.add_row(
            row["stage"],
            "yes" if row["alarm"] else "no",
            number(row["total"]),
            percent(row["accuracy"]),
            number(row["rank_correlation"]),
        )
    console.print(table)
