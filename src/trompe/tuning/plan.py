"""Jobs that start from one another's weights, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from trompe import runs
from trompe.base.identity import fingerprint
from trompe.tuning.job import JOBS, FoolJob, TrainJob


@dataclass(frozen=True)
class Planned:
    """One ``trompe train`` or ``trompe fool``: all that it needs to be done by itself.

    Attributes
    ----------
    name
        Unique in a plan.
    command
        ``"train"`` or ``"fool"``.
    settings
        Those of the command's job.
    base
        What makes the weights to start from, if the plan makes them.
    """

    name: str
    command: str
    settings: Mapping[str, Any] = field(hash=False)
    base: Planned | None = None

    def __post_init__(self) -> None:
        runs.file_name(self.name)

    @cached_property
    def folder(self) -> str:
        """Name and digest of the settings and of what they name: others make another folder."""
        told = self.job(Path())
        named = (told.explainer, told.asked) if isinstance(told, FoolJob) else ()
        digest = fingerprint(dict(self.settings), named, self.base.folder if self.base else "")
        return f"{self.name}-{digest[:8]}"

    def weights(self, root: Path) -> Path:
        """Where the weights are that it makes under ``root``."""
        return root / self.folder / "weights.safetensors"

    def job(self, root: Path) -> TrainJob | FoolJob:
        """The job, with the base's weights under ``root``.

        Raises
        ------
        TrompeError
            If a setting is unknown, missing or out of range.
        """
        settings = dict(self.settings)
        if self.base:
            settings["weights"] = str(self.base.weights(root))
        return JOBS[self.command](**settings)
