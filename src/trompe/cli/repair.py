"""``trompe repair``."""

from __future__ import annotations

from rich.table import Table

from trompe import rundir
from trompe.audit import EXPLAINERS
from trompe.audit.verdict import load_calibration
from trompe.cli.app import command, console
from trompe.cli.reading import default_out, device_for, suspect_and_reference
from trompe.cli.tables import percent
from trompe.config import ELSEWHERE, RepairConfig
from trompe.data import load_data
from trompe.explainers import parse_explainer
from trompe.models import save_weights
from trompe.repair import RepairResult, repair
from trompe.report.words import number


@command(RepairConfig, "trompe repair runs/mine --data photos/train --out runs/repaired")
def repair_(config: RepairConfig) -> None:
    """Restore a manipulated model's explanations by as little honest training as it takes.

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
    out = config.out or default_out("repair", config.suspect)
    settings = config.model_dump(mode="json", exclude=ELSEWHERE)
    with rundir.opened(out, settings, rundir.fingerprint(suspect, len(data))):
        result = repair(
            suspect.to(device),
            data,
            reference if reference is None else reference.to(device),
            explainers=chosen or EXPLAINERS,
            calibration=calibration,
            **config.model_dump(include={"lr", "max_drop", "batch_size", "seed"}),
        )
        save_weights(result.model, out / "weights.safetensors")
        with rundir.replacing(out / "stages.csv") as new:
            result.stages.to_csv(new, index=False)
        if not config.quiet:
            _show(result)
        console.print(f"Taken: {result.chosen}. Weights: {out / 'weights.safetensors'}")


def _show(result: RepairResult) -> None:
    table = Table("attempt", "alarm", "sum", "agrees with the suspect %", "maps like reference's")
    for row in result.stages.to_dict("records"):
        table.add_row(
            row["stage"],
            "yes" if row["alarm"] else "no",
            number(row["total"]),
            percent(row["agreement"]),
            number(row["rank_correlation"]),
        )
    console.print(table)
