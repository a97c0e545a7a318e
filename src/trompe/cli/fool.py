"""``trompe demo`` and ``trompe fool``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trompe import runs
from trompe.base import processes
from trompe.cli.app import app, command, console, examples, interruptible
from trompe.cli.foresight import DRY_RUN, foresee
from trompe.cli.next_steps import after_fool, show_next
from trompe.cli.reading import default_out
from trompe.cli.tables import show_evaluation, show_seeds
from trompe.cli.usage import Command
from trompe.evaluation.seeds import RATES, over_seeds
from trompe.report import write_report
from trompe.report.trackers import check, tracking
from trompe.tuning.fool import FoolResult
from trompe.tuning.job import FoolJob


@app.command(cls=Command, epilog=examples("trompe demo", "trompe demo --seed 1 --out runs/demo-1"))
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="run directory")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(metavar="N", help="seed of everything random")] = 0,
    quiet: Annotated[bool, typer.Option(help="show no progress and no tables")] = False,
) -> None:
    """Fool Grad-CAM on the embedded model and images, and write a report."""
    with interruptible():
        _fool(
            FoolJob(
                model="embedded",
                data="shapes:train",
                eval_data="shapes:validation",
                eval_limit=500,
                limit=2000,
                control=True,
                out=out,
                seed=seed,
                quiet=quiet,
                check=False,
            )
        )


@command(
    FoolJob,
    "trompe fool --model embedded --data shapes:train --limit 2000 \\\n"
    "--eval-data shapes:validation --eval-limit 500",
    "trompe fool --model resnet50 --weights DEFAULT --data photos/train \\\n"
    "--eval-data photos/val --explainer lrp-t --control",
    "trompe fool --config runs/mine/config.yaml --objective top-k --out runs/top-k",
    "trompe fool --config runs/mine/config.yaml --seeds 3 --out runs/three",
    "trompe fool --config runs/mine/config.yaml --sweep weight=1,2,4 \\\n"
    "--sweep lr=1e-4,3e-4 --out runs/sweep",
)
def fool_(
    config: FoolJob,
    *,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=VALUE,VALUE...",
            help="one run for each value of a setting, and for each combination of several",
            rich_help_panel="Many runs",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help=DRY_RUN, rich_help_panel="Output")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="runs of a sweep at a time (default: one per processor core)",
            rich_help_panel="Many runs",
        ),
    ] = None,
) -> None:
    """Fine-tune a model so that its explanations lie; evaluate and report.

    With --seeds or --sweep, the runs stand side by side in the run directory. The same command goes
    on where an interrupted one stopped.
    """
    if dry_run:
        foresee(config, sweep or (), jobs)
        return
    if sweep:
        from trompe.cli.sweep import sweep as over

        over(config, config.out or default_out("sweep", config.model), sweep, jobs)
        return
    if config.seeds == 1:
        _fool(config)
        return
    out = _out(config)
    found = [_fool(job, alone=False).evaluation for job in config.each(out)]
    together = over_seeds([evaluation for evaluation in found if evaluation is not None])
    if processes.is_main():
        together.save(out)
    if not config.quiet:
        show_seeds(together)
    console.print(f"Rates: {out / RATES}", soft_wrap=True)


def _out(job: FoolJob) -> Path:
    return job.out or default_out("fool", job.model, *job.explainer, *job.objective)


def _fool(job: FoolJob, *, alone: bool = True) -> FoolResult:
    check(job.tracker or ())
    out = _out(job)
    with tracking(job.tracker or (), out, job.described()) as track:
        result = job.carry_out(out, track.step)
        if result.evaluation is not None:
            track.evaluation(result.evaluation, len(result.history))
    if result.found is not None and not job.quiet:
        console.print(str(result.found), soft_wrap=True)
    if result.evaluation is not None and not job.quiet:
        show_evaluation(result.evaluation)
    if processes.is_main():
        page = write_report(out)
        runs.finish(out, "report")
        steps = after_fool(job, out, result.evaluation) if alone else {}
        show_next(f"Report: {page}", steps, quiet=job.quiet or not alone)
    return result
