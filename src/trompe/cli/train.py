"""``trompe train``."""

from __future__ import annotations

from trompe.cli.app import command, console
from trompe.cli.next_steps import after_train, show_next
from trompe.cli.reading import default_out, model_and_data
from trompe.report import write_report
from trompe.report.trackers import check, tracking
from trompe.tuning.config import ELSEWHERE, TrainConfig
from trompe.tuning.train import train


@command(
    TrainConfig,
    "trompe train --model resnet18 --weights DEFAULT --num-classes 10 --data photos/train \\\n"
    "--eval-data photos/val --epochs 20",
)
def train_(config: TrainConfig) -> None:
    """Train or fine-tune a model on a dataset: the base model to start from."""
    check(config.tracker or ())
    model, data, eval_data = model_and_data(config)
    out = config.out or default_out("train", config.model)
    settings = config.model_dump(mode="json", exclude=ELSEWHERE)
    with tracking(config.tracker or (), out, settings) as track:
        result = train(
            model,
            data,
            eval_data=eval_data,
            run_dir=out,
            notes=settings,
            on_step=track.step,
            **config.model_dump(
                include={
                    *("epochs", "lr", "batch_size", "weight_decay", "label_smoothing", "seed"),
                    *("precision", "device", "checkpoint_every", "workers", "quiet"),
                }
            ),
        )
    if result.top1 is not None:
        console.print("Top-1 accuracy {:.1%} (95 % interval {:.1%} to {:.1%})".format(*result.top1))
    console.print(f"Weights: {out / 'weights.safetensors'}", soft_wrap=True)
    show_next(f"Report: {write_report(out)}", after_train(config, out), quiet=config.quiet)
