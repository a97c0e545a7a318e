"""``trompe train``."""

from __future__ import annotations

from trompe import runs
from trompe.base import processes
from trompe.cli.app import command, console
from trompe.cli.next_steps import after_train, show_next
from trompe.cli.reading import default_out
from trompe.report import write_report
from trompe.report.trackers import check, tracking
from trompe.tuning.job import TrainJob


@command(
    TrainJob,
    "trompe train --model resnet18 --weights DEFAULT --num-classes 10 --data photos/train \\\n"
    "--eval-data photos/val --epochs 20",
)
def train_(job: TrainJob) -> None:
    """Train or fine-tune a model on a dataset: the base model to start from.

    From random weights, a network has an output for each class of the data.
    """
    job = job.with_classes()
    check(job.tracker or ())
    out = job.out or default_out("train", job.model)
    with tracking(job.tracker or (), out, job.described()) as track:
        result = job.carry_out(out, track.step)
    if not processes.is_main():
        return
    if result.top1 is not None:
        console.print("Top-1 accuracy {:.1%} (95 % interval {:.1%} to {:.1%})".format(*result.top1))
    console.print(f"Weights: {out / 'weights.safetensors'}", soft_wrap=True)
    page = write_report(out)
    runs.finish(out, "report")
    show_next(f"Report: {page}", after_train(job, out), quiet=job.quiet)
