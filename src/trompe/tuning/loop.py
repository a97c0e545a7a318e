"""The optimisation loop of every fine-tuning: one page, resumable at every checkpoint."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import load
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trompe import runs
from trompe.base import json_text, processes
from trompe.base.code import written_by_others
from trompe.base.messages import first_sentence
from trompe.base.progress import Work, shown
from trompe.data.images import collated
from trompe.data.kept import Kept
from trompe.errors import TrompeError
from trompe.evaluation.result import read_table
from trompe.models import copied, load_model, save_weights
from trompe.models.weights import fit_weights, plain_content, read_weights, require_uncompressed
from trompe.tuning.threads import Threads

WINDOW = 50
HISTORY = "custom_checkpoint_0.pkl"  # what accelerate calls the first thing that is registered

OnStep = Callable[[str, Mapping[str, float]], None]


@dataclass(frozen=True)
class Loss:
    """The total to minimise, its parts by name, and figures to show beside them."""

    total: Tensor
    parts: Mapping[str, Tensor]
    figures: Mapping[str, float] = field(default_factory=dict)


class Source(Protocol):
    """Where batches come from."""

    def between(self, start: int, stop: int) -> Iterator[list[Tensor]]:
        """The batches of steps ``start`` to ``stop`` - 1."""


class Pilot(Protocol):
    """What steers a fine-tuning and says when it is done."""

    @property
    def done(self) -> bool:
        """Whether no further step is to be taken."""

    def __call__(self, row: dict[str, float]) -> dict[str, float]:
        """Look at the row of the step just taken; returns what to add to it."""


class Batches:
    """Batches as a function of the step alone, so that a resumed run sees what it would have seen.

    Permutations of the data follow one another without a gap and are cut into batches. Items come
    with their index first. Of several processes each gets its share of every batch. Without worker
    processes decoded images are kept in memory, if they are not augmented.

    Raises
    ------
    TrompeError
        If the processes can't share a batch evenly.
    """

    def __init__(self, data: Any, batch_size: int, seed: int, workers: int = 0) -> None:
        if batch_size % processes.count():
            raise TrompeError(
                f"A batch of {batch_size} can't be shared by {processes.count()} processes; choose "
                "a multiple."
            )
        if batch_size > len(data):
            warnings.warn(
                f"A batch of {batch_size} is larger than the data, {len(data)} images: each "
                "stands in it more than once. Give more images, or a smaller batch_size.",
                stacklevel=2,
            )
        self.data = data
        self._indexed = _Indexed(data, keep=workers == 0)
        self.size = len(data)
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers

    def between(self, start: int, stop: int) -> Iterator[list[Tensor]]:
        """The batches of steps ``start`` to ``stop`` - 1, as ``[indices, *item parts]``."""
        loader = DataLoader(
            self._indexed,
            batch_sampler=(self._indices(step) for step in range(start, stop)),
            num_workers=self.workers,
            collate_fn=collated,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return iter(loader)

    def _indices(self, step: int) -> list[tuple[int, int]]:
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [
            (self._permutation(p // self.size)[p % self.size], p // self.size)
            for p in processes.share(positions)
        ]

    def _permutation(self, epoch: int) -> list[int]:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(self.size, generator=generator).tolist()
            self._epoch = epoch
        return self._order


class _Indexed(Dataset[Any]):
    def __init__(self, data: Any, *, keep: bool) -> None:
        self.augmented = bool(getattr(data, "augmented", False))
        self.data: Any = Kept(data) if keep and not self.augmented else data

    def __getitem__(self, place: tuple[int, int]) -> tuple[Any, ...]:
        index, _ = place
        return (index, *self.data[place if self.augmented else index])


def optimise(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    batches: Sequence[Source],
    loss: Callable[[list[list[Tensor]]], Loss],
    *,
    steps: int,
    title: str,
    directory: Path | None = None,
    checkpoint_every: int = 200,
    extra: Sequence[Any] = (),
    on_step: OnStep | None = None,
    scheduler: Any = None,
    pilot: Pilot | None = None,
    max_grad_norm: float | None = None,
    work: Work = float,
    quiet: bool = True,
) -> list[dict[str, float]]:
    """Take ``steps`` optimiser steps and return one row of figures per step.

    Parameters
    ----------
    model, optimizer, scheduler
        Prepared by ``accelerator``.
    batches
        Sources of one batch each per step.
    loss
        From the batches of a step to its loss.
    directory
        Where checkpoints go; a run found there is gone on with.
    extra
        Objects with ``state_dict`` and ``load_state_dict`` that belong to a checkpoint.
    on_step
        Called after every step with the title and the step's row.
    pilot
        Called before that with the row; it may end the run before ``steps``.
    max_grad_norm
        The gradient is scaled down to this norm where it is larger.
    work
        How much is done after so many steps; told to whom the remaining time is shown.

    Raises
    ------
    TrompeError
        If the loss is not finite (names the step and the part; the last checkpoint stays), or a
        checkpoint can't be written.
    """
    history = _History()
    accelerator.register_for_checkpointing(history, *extra)
    if directory is not None:
        last = processes.from_main(lambda: _latest(directory))
        if last is not None:
            runs.check_sealed(last)
            _go_on(accelerator, last)
    start = len(history.rows)
    sources = [source.between(start, steps) for source in batches]
    total = steps if pilot is None else None
    with (
        Threads(accelerator.device) as threads,
        shown(title, total, quiet=quiet, start=start, work=work) as report,
    ):
        for step in range(start, steps):
            if pilot is not None and pilot.done:
                break
            with threads.step():
                optimizer.zero_grad()
                result = loss([next(source) for source in sources])
                row = {"step": step + 1, **_figures(result, accelerator.device)}
                _check_finite(row, directory)
                accelerator.backward(result.total)
                processes.average_gradients(model)
                if max_grad_norm is not None:
                    accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
                optimizer.step()
                processes.average_statistics(model)
                if scheduler is not None:
                    scheduler.step()
            judged = {} if pilot is None else pilot(row)
            history.rows.append(row | judged)
            if on_step is not None:
                on_step(title, row | judged)
            recent = history.rows[-WINDOW:]
            told = row.keys() - {"step"} if pilot is None else {"top1", "success"} & row.keys()
            report(step + 1, {k: _mean(recent, k) for k in row if k in told} | judged)
            ends = step + 1 == steps or (pilot is not None and pilot.done)
            if directory is not None and ((step + 1) % checkpoint_every == 0 or ends):
                _save(accelerator, model, directory, step + 1)
    return history.rows


def once(
    model: nn.Module,
    directory: Path | None,
    name: str,
    fit: Callable[[Path | None], pd.DataFrame],
    *,
    suffix: str = "",
) -> pd.DataFrame:
    """Tune ``model`` in place unless ``directory`` holds the result, and return the history.

    Parameters
    ----------
    directory
        Where weights and history are kept and, while ``fit`` runs, ``checkpoints/name``.
    fit
        From the directory of checkpoints to the history of a model that is then tuned.
    suffix
        Ends the names of both files.
    """
    if directory is None:
        return fit(None)
    weights, table = directory / f"weights{suffix}.safetensors", directory / f"history{suffix}.csv"
    checkpoints = directory / "checkpoints" / name
    if processes.from_main(lambda: name in runs.finished(directory)):
        if processes.is_main():
            runs.remove(checkpoints)
        return restored(model, directory, suffix)
    history = fit(checkpoints)
    if processes.is_main():
        save_weights(model, weights)
        with runs.replacing(table) as new:
            runs.write_csv(history, new)
        runs.finish(directory, name, weights, table)
        runs.remove(checkpoints)
    return history


def restored(model: nn.Module, directory: Path, suffix: str = "") -> pd.DataFrame:
    """Give ``model`` the weights that a finished fine-tuning left; its history."""
    weights, table = directory / f"weights{suffix}.safetensors", directory / f"history{suffix}.csv"
    runs.check_intact(directory, weights, table)
    fit_weights(model, read_weights(weights), str(weights))
    return read_table(table, ("step", "loss"))


def last_row(directory: Path, name: str) -> dict[str, float]:
    """The last row that a run directory holds of a history: its end, or that of a checkpoint."""
    table = directory / "history.csv"
    with suppress(OSError, ValueError):  # a checkpoint may give way to the next one at any moment
        if table.is_file():
            return {str(k): v for k, v in runs.read_csv(table).iloc[-1].items()}
        if latest := _latest(directory / "checkpoints" / name):
            kept = plain_content(latest / HISTORY)
            row: dict[str, float] = json_text.loaded(kept["rows"])[-1]
            return row
    return {}


def architecture(directory: Path, model: nn.Module | None) -> nn.Module:
    """A copy of ``model``, or the model that a run directory's config names.

    Raises
    ------
    TrompeError
        If the config names none, or one whose code would be run.
    """
    if model is not None:
        return copied(model)
    config = runs.config_of(directory)
    if "model" not in config:
        raise TrompeError(f"'{directory}' does not say which model it is of; give it as model.")
    with written_by_others(f"'{directory / runs.CONFIG}'"):
        return load_model(config["model"], "random", config.get("num_classes")).model


class _History:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": json.dumps(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows[:] = json_text.loaded(state["rows"])


def _figures(result: Loss, device: torch.device) -> dict[str, float]:
    parts = {name: part.item() for name, part in result.parts.items()}
    return processes.averaged({"loss": result.total.item(), **parts, **result.figures}, device)


def _check_finite(row: Mapping[str, float], directory: Path | None) -> None:
    for name in [*(name for name in row if name != "loss"), "loss"]:
        if not math.isfinite(row[name]):
            raise TrompeError(
                f"The loss is not finite at step {row['step']}: the part '{name}' is {row[name]}"
                f"{_kept(directory)}; lower the learning rate or the weight, or use full precision."
            )


def _kept(directory: Path | None) -> str:
    last = directory and _latest(directory)
    return f". The checkpoint of {last.name.replace('-', ' ')} is kept" if last else ""


def _mean(rows: list[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _latest(directory: Path) -> Path | None:
    found = sorted(directory.glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    return found[-1] if found else None


def _go_on(accelerator: Accelerator, checkpoint: Path) -> None:
    """Read a checkpoint, and run nothing that is in it.

    Raises
    ------
    TrompeError
        If it can't be read, or reading it would run something.
    """
    try:
        for path in [*checkpoint.glob("*.pkl"), *checkpoint.glob("*.bin")]:
            require_uncompressed(path)
        for path in checkpoint.glob("*.pkl"):  # accelerate would run code in some, pass over others
            load(path, map_location="cpu", weights_only=True)
        accelerator.load_state(str(checkpoint))
    except Exception as error:
        raise TrompeError(
            f"The checkpoint '{checkpoint}' is refused ({first_sentence(error)}); nothing in it "
            "was executed. Remove it to start again."
        ) from error


def _save(accelerator: Accelerator, model: nn.Module, directory: Path, step: int) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise TrompeError(
                f"After step {step} the weights '{name}' are not finite{_kept(directory)}; lower "
                "the learning rate or the weight, or use full precision."
            )
    older = _latest(directory)
    new, main = directory / f"step-{step}", processes.is_main()
    with runs.replacing(new) if main else nullcontext(runs.unfinished(new)) as at:
        processes.wait()
        plain = all(isinstance(value, Tensor) for value in model.state_dict().values())
        accelerator.save_state(str(at), safe_serialization=plain)
        processes.wait()
        if main:
            runs.seal(at)
    if older is not None and main:
        runs.remove(older)
