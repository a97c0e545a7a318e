"""``trompe demo`` and ``trompe fool``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trompe.base import processes
from trompe.cli.app import app, command, examples, interruptible
from trompe.cli.next_steps import after_fool, show_next
from trompe.cli.reading import default_out, model_and_data, read_data
from trompe.cli.tables import show_evaluation
from trompe.data import Pairs
from trompe.explainers import parse_explainer
from trompe.objectives import Active, parse_objective
from trompe.report import write_report
from trompe.report.trackers import check, tracking
from trompe.tuning.config import ELSEWHERE, FoolConfig
from trompe.tuning.fool import fool


@app.command(epilog=examples("trompe demo", "trompe demo --seed 1 --out runs/demo-1"))
def demo(
    out: Annotated[Path, typer.Option(help="run directory")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    quiet: Annotated[bool, typer.Option(help="show no progress and no tables")] = False,
) -> None:
    """Fool Grad-CAM on the embedded model and images, and write a report."""
    with interruptible():
        _fool(
            FoolConfig(
                model="embedded",
                data="shapes:train",
                eval_data="shapes:validation",
                limit=2000,
                lr=5e-3,
                schedule="one-cycle",
                steps=800,
                batch_size=16,
                weight=[6.0],
                control=True,
                out=out,
                seed=seed,
                quiet=quiet,
                check=False,
            )
        )


@command(
    FoolConfig,
    "trompe fool --model embedded --data shapes:train --limit 500 --steps 100 \\\n"
    "--lr 5e-3 --weight 6 --eval-data shapes:validation --eval-limit 200",
    "trompe fool --model resnet50 --weights DEFAULT --data photos/train \\\n"
    "--eval-data photos/val --steps 300 --lr 6e-5 --schedule one-cycle --control",
    "trompe fool --config runs/mine/config.yaml --objective top-k --out runs/top-k",
)
def fool_(config: FoolConfig) -> None:
    """Fine-tune a model so that its explanations lie; evaluate and report."""
    _fool(config)


def _fool(config: FoolConfig) -> None:
    check(config.tracker or ())
    explainers = [parse_explainer(spec) for spec in config.explainer]
    objectives = [parse_objective(spec) for spec in config.objective]
    judges = [parse_explainer(spec) for spec in config.eval_explainer or ()] or None
    model, data, eval_data = model_and_data(config)
    held_out = read_data(config, config.held_out, data.preprocessing)
    fool_data = eval_fool_data = None
    for objective in objectives:
        if isinstance(objective, Active):
            classes = (objective.c1, objective.c2)
            fool_data = Pairs(data, *classes, size=config.pairs, seed=config.seed)
            if eval_data is not None:
                if config.eval_limit is None:
                    everything = eval_data
                else:
                    everything = read_data(config, config.eval_data, eval_data.preprocessing)
                eval_fool_data = Pairs(
                    everything, *classes, size=config.eval_pairs, seed=config.seed
                )
    out = config.out or default_out("fool", config.model, *config.explainer, *config.objective)
    settings = config.model_dump(mode="json", exclude=ELSEWHERE)
    with tracking(config.tracker or (), out, settings) as track:
        result = fool(
            model,
            data,
            explainer=explainers,
            objective=objectives,
            weight=config.weight,
            fool_data=fool_data,
            held_out=held_out,
            eval_data=eval_data,
            eval_fool_data=eval_fool_data,
            eval_explainer=judges,
            run_dir=out,
            notes=settings,
            on_step=track.step,
            **config.model_dump(
                include={
                    *("lr", "schedule", "steps", "batch_size", "fool_batch_size", "seed"),
                    *("keep", "control", "max_accuracy_drop", "max_grad_norm", "precision"),
                    *("device", "checkpoint_every", "gallery", "workers", "quiet"),
                    "gradient_checkpointing",
                }
            ),
        )
        if result.evaluation is not None:
            track.evaluation(result.evaluation, config.steps)
    if result.evaluation is not None and not config.quiet:
        show_evaluation(result.evaluation)
    if processes.is_main():
        steps = after_fool(config, out, result.evaluation)
        show_next(f"Report: {write_report(out)}", steps, quiet=config.quiet)
