"""``--dry-run``: what a command would do, in full, and about how long it would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trompe.audit import estimate as of_audit
from trompe.audit.evidence import Evidence
from trompe.base.progress import spoken
from trompe.cli.app import complain, errors
from trompe.cli.jobs import AuditJob
from trompe.cli.reading import Case
from trompe.errors import TrompeError, printable
from trompe.experiments import Cell, is_finished, texts
from trompe.experiments.runner import at_a_time
from trompe.experiments.sweep import axes, points
from trompe.tuning.estimate import Estimate, estimate
from trompe.tuning.job import FoolJob
from trompe.tuning.recipe import ELSEWHERE

DRY_RUN = "print the settings in full and about how long it takes; write nothing"


def foresee(config: FoolJob, sweep: Sequence[str], jobs: int | None) -> None:
    """Print the settings of a lie and its time, and which runs there are if there are many."""
    found = estimate(config)
    _print(found.settings)
    errors.print(str(found), soft_wrap=True, highlight=False)
    cells = points(config, axes(sweep)) if sweep else []
    for cell in cells:
        errors.print(cell.name, soft_wrap=True, highlight=False)
    if (count := config.seeds * max(1, len(cells))) > 1:
        at_once = min(count, at_a_time(jobs)) if cells else 1
        told = f"{count} runs, {at_once} at a time: about {spoken(found.seconds * count / at_once)}"
        errors.print(told, soft_wrap=True, highlight=False)


def foresee_audit(config: AuditJob, case: Case, kinds: Sequence[Evidence]) -> None:
    """Print the settings of an audit and its time."""
    took = of_audit.seconds(
        case.suspect,
        case.data,
        case.reference,
        explainers=case.explainers,
        kinds=kinds,
        **config.model_dump(include={"seed", "batch_size"}),
    )
    settings = config.model_dump(mode="json", exclude=ELSEWHERE)
    _print(settings | {"explainer": list(map(str, case.explainers))})
    errors.print(f"About {spoken(took)} with {len(case.data)} images.", highlight=False)


def foresee_grid(cells: Sequence[Cell], root: Path, jobs: int | None) -> None:
    """Print the settings of the cells of a grid, and the time of those that are not finished."""
    for name, settings in texts(cells, root):
        print(printable(f"# {name}\n{settings}---"))
    waiting = [cell for cell in cells if not is_finished(cell, root)]
    known: dict[tuple[str, str], Estimate] = {}
    seconds = 0.0
    for cell in waiting:
        job = cell.job(root).model_copy(update={"weights": "random"})  # which take as long
        place = cell.network, cell.command
        try:
            found = known.get(place) or estimate(job)
        except TrompeError as error:
            complain("No estimate of the time", error, "yellow")
            return
        known[place] = found.of(job) if isinstance(job, FoolJob) else found
        seconds += known[place].seconds
    at_once = min(max(1, len(waiting)), at_a_time(jobs))
    told = f"About {spoken(seconds / at_once)}: {len(waiting)} cells, {at_once} at a time."
    errors.print(told, soft_wrap=True, highlight=False)


def _print(settings: Mapping[str, Any]) -> None:
    print(printable(yaml.safe_dump(dict(settings), sort_keys=False)), end="")
