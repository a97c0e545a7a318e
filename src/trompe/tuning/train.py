"""Train or fine-tune a classifier: the base model that `fool` starts from."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trompe import runs
from trompe.base import processes
from trompe.data.images import Images, check_labels
from trompe.errors import TrompeError
from trompe.evaluation.accuracy import accuracy
from trompe.metrics import in_top
from trompe.models.call import class_count, logits_of, placed
from trompe.tuning.loop import Batches, Loss, OnStep, accelerator_for, once, optimise


@dataclass(frozen=True)
class TrainResult:
    """The trained model, one history row per step, and (top-1, low, high) on ``eval_data``."""

    model: nn.Module
    history: pd.DataFrame
    top1: tuple[float, float, float] | None
    run_dir: Path | None


def train(
    model: nn.Module,
    data: Images,
    *,
    epochs: float,
    lr: float = 1e-3,
    batch_size: int = 64,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    seed: int = 0,
    eval_data: Images | None = None,
    run_dir: str | Path | None = None,
    checkpoint_every: int = 200,
    precision: str = "no",
    device: str | None = None,
    workers: int = 0,
    notes: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train a copy of ``model`` with AdamW under a one-cycle schedule.

    Parameters that are not listed are those of `fool`.

    Parameters
    ----------
    model
        The classifier to start from; it is not changed.
    data, eval_data
        Items ``(image [3, H, W], label)``; ``eval_data`` is only looked at once, at the end.
    epochs
        Passes over ``data``; may be a fraction.
    lr, weight_decay, label_smoothing
        Peak learning rate, AdamW's weight decay, smoothing of the cross-entropy.

    Raises
    ------
    TrompeError
        If something given can't be used, the loss stops being finite, or the run directory can't
        be used.
    """
    if not (math.isfinite(lr) and lr > 0 and epochs > 0 and batch_size > 0):
        raise TrompeError("lr, epochs and batch_size must be above 0.")
    if not len(data):
        raise TrompeError("There is no image to train on.")
    accelerator = accelerator_for(device, precision)
    if processes.count() > 1:
        raise TrompeError("Training runs in one process; start trompe train without a launcher.")
    model = copy.deepcopy(model).to(accelerator.device)
    count = class_count(model, data[0][0])
    for dataset in (data, eval_data):
        if dataset is not None:
            check_labels(dataset, count)
    steps = max(1, math.ceil(len(data) * epochs / batch_size))

    def run(directory: Path | None) -> TrainResult:
        history = once(model, directory, "train", fit)
        top1 = None if eval_data is None else accuracy(model, eval_data, workers=workers)
        if top1 is not None and directory:
            named = dict(zip(("top1", "low", "high"), top1, strict=True))
            runs.write_text(directory / "accuracy.json", json.dumps(named))
        return TrainResult(model, history, top1, directory)

    def fit(folder: Path | None) -> pd.DataFrame:
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, weight_decay=weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        prepared, optimizer, schedule = accelerator.prepare(model.train(), optimizer, schedule)

        def loss(batches: list[list[Tensor]]) -> Loss:
            _, images, labels = batches[0]
            labels = labels.to(accelerator.device)
            logits = logits_of(prepared(placed(images, model))).float()
            value = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
            correct = in_top(logits.detach(), labels, 1).float().mean().item()
            return Loss(value, {"classification": value}, {"accuracy": correct})

        rows = optimise(
            accelerator,
            prepared,
            optimizer,
            [Batches(data, batch_size, seed, workers)],
            loss,
            steps=steps,
            title="train",
            directory=folder,
            checkpoint_every=checkpoint_every,
            on_step=on_step,
            scheduler=schedule,
            quiet=quiet,
        )
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False).eval()
        return pd.DataFrame(rows)

    if run_dir is None:
        return run(None)
    settings = {
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "seed": seed,
        "precision": precision,
        "device": device,
        "checkpoint_every": checkpoint_every,
    }
    start = runs.fingerprint(model, len(data))
    with runs.opened(Path(run_dir), {**(notes or {}), **settings}, start) as directory:
        runs.require_space(directory, model, 8)
        return run(directory)
