"""The paper's experiments as data: one YAML per scale, from which every cell's settings follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from trompe import runs
from trompe.base.messages import check_name
from trompe.base.settings import filled, read_layout
from trompe.errors import TrompeError
from trompe.tuning.job import JOBS
from trompe.tuning.plan import Planned
from trompe.tuning.recipe import ELSEWHERE

SCALES = ("imagenet", "imagenette", "embedded")
SECTIONS = ("passive", "active")
Settings = dict[str, Any]


class Network(BaseModel, extra="allow"):
    """A network's title, the layer that it is explained at, and settings of all its cells."""

    title: str = ""
    target: str

    @property
    def settings(self) -> Settings:
        """What is given besides the title and the layer."""
        return dict(self.__pydantic_extra__ or {})


class Part(BaseModel, extra="forbid"):
    """Cells by network, and settings of all of them."""

    settings: Settings = {}
    cells: dict[str, Settings] = {}


class Section(BaseModel, extra="forbid"):
    """Cells by objective, explainer and network, and settings of all of them."""

    settings: Settings = {}
    cells: dict[str, dict[str, dict[str, Settings]]] = {}


class Layout(BaseModel, extra="forbid"):
    """What the YAML file of a scale holds; what is further in takes precedence."""

    scale: str | None = None
    networks: dict[str, Network]
    settings: Settings = {}
    base: Part = Part()
    control: Part = Part()
    passive: Section = Section()
    active: Section = Section()


@dataclass(frozen=True)
class Cell(Planned):
    """One run of the grid.

    Attributes
    ----------
    section
        ``"base"``, ``"control"``, ``"passive"`` or ``"active"``.
    network, objective, explainer
        Where the cell stands in the tables; the last two are empty for bases and controls.
    title
        What the tables call the network.
    row
        Its row in the tables, which all its seeds share: the name of the first one.
    """

    section: str = field(kw_only=True)
    network: str = field(kw_only=True)
    objective: str = field(default="", kw_only=True)
    explainer: str = field(default="", kw_only=True)
    title: str = field(kw_only=True)
    row: str = field(kw_only=True)


@dataclass(frozen=True)
class Grid:
    """The cells of one scale, and the layer that each network is explained at."""

    scale: str
    targets: Mapping[str, str]
    cells: Sequence[Cell]

    def chosen(self, sections: Sequence[str], patterns: Sequence[str]) -> list[Cell]:
        """The cells of ``sections`` whose name matches a pattern (all without patterns).

        Controls belong to every section, and to all of it the bases that it starts from. They are
        in the order of importance: by network, as the layout lists them; of a network its base, its
        control, and then its cells as the layout lists them.

        Raises
        ------
        TrompeError
            If a pattern matches no cell.
        """
        found = [c for c in self.cells if c.section in (*sections, "control")]
        if patterns:
            for pattern in patterns:
                if not any(_called(c, pattern) for c in found):
                    known = ", ".join(c.name for c in found)
                    raise TrompeError(f"No cell is called '{pattern}'; there are {known}.")
            found = [c for c in found if any(_called(c, p) for p in patterns)]
        bases = dict.fromkeys(c.base for c in found if isinstance(c.base, Cell))
        networks = [*self.targets]
        return sorted([*bases, *found], key=lambda cell: networks.index(cell.network))


def load_grid(
    scale: str,
    *,
    data: str | None = None,
    bases: Mapping[str, str] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Grid:
    """Read the grid of a scale.

    Parameters
    ----------
    scale
        One of `SCALES`, or the path of a YAML file laid out like theirs.
    data
        The dataset's folder, which ``{data}`` stands for.
    bases
        Weights by network, instead of those that the grid would train.
    given
        Settings that replace those of every cell.

    Raises
    ------
    TrompeError
        If there is no such scale, it needs ``data`` and there is none, a network is unknown, or a
        cell's settings can't be used.
    """
    layout = _read(scale)
    bases = bases or {}
    for name in bases:
        check_name("network", name, layout.networks)
    if data is None and "{data}" in layout.model_dump_json():
        raise TrompeError(f"The scale {scale} needs the folder of its images; give it with --data.")

    def cells_of(
        section: str, network: str, own: Settings, objective: str = "", explainer: str = ""
    ) -> list[Cell]:
        """A cell, once for each seed."""
        check_name("network", network, layout.networks)
        part: Part | Section = getattr(layout, section)
        command = "train" if section == "base" else "fool"
        settings = {**part.settings, **layout.networks[network].settings, **own}
        if command == "fool":
            settings = {**layout.settings, **settings}
        if explainer:
            settings |= {"objective": [objective], "explainer": [f"{explainer}:layer={{target}}"]}
        if command == "fool" and network in bases:
            settings["weights"] = bases[network]
        settings |= {k: v for k, v in (given or {}).items() if k in JOBS[command].model_fields}
        words = {"{data}": data or "", "{target}": layout.networks[network].target}
        base = trained.get(network) if command == "fool" else None
        title = layout.networks[network].title or network
        filled_in = filled(settings, words)
        name = f"{section}-{network}"
        if explainer:
            first = objective.partition(":")[0]
            alike = [other for other in part.cells if other.partition(":")[0] == first]
            told = runs.as_file_name(objective) if len(alike) > 1 else first
            name = f"{told}-{explainer}-{network}"
        asked = Cell(
            name,
            command,
            filled_in,
            base,
            section=section,
            network=network,
            objective=objective,
            explainer=explainer,
            title=title,
            row=name,
        )
        job = asked.job(Path())  # its settings can be used
        settings = {key: value for key, value in filled_in.items() if key != "seeds"}
        others = range(job.seed + 1, job.seed + getattr(job, "seeds", 1))
        return [replace(asked, settings=settings)] + [
            replace(asked, name=f"{name}-seed-{seed}", settings={**settings, "seed": seed})
            for seed in others
        ]

    trained: dict[str, Cell] = {}
    for network, own in layout.base.cells.items():
        if network not in bases:
            (trained[network],) = cells_of("base", network, own)
    cells = [*trained.values()]
    for network, own in layout.control.cells.items():
        cells += cells_of("control", network, own)
    for section in SECTIONS:
        for objective, explainers in getattr(layout, section).cells.items():
            for explainer, networks in explainers.items():
                for network, own in networks.items():
                    cells += cells_of(section, network, own, objective, explainer)
    targets = {name: network.target for name, network in layout.networks.items()}
    return Grid(layout.scale or scale, targets, cells)


def _called(cell: Cell, pattern: str) -> bool:
    return fnmatch(cell.name, pattern) or fnmatch(cell.row, pattern)


@cache
def paper() -> dict[str, Any]:
    """The paper's figures in per cent; see ``paper.yaml``."""
    found: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("paper.yaml").read_text())
    return found


def _read(scale: str) -> Layout:
    packaged = files(__package__).joinpath(f"{scale}.yaml")
    file = packaged if scale in SCALES else Path(scale)
    if not file.is_file():
        raise TrompeError(
            f"There is no scale '{scale}'; choose {', '.join(SCALES)}, or a YAML file."
        )
    return read_layout(Layout, file, "grid")


def texts(cells: Sequence[Cell], root: Path) -> Iterator[tuple[str, str]]:
    """Name and resolved settings of every cell, as YAML."""
    for cell in cells:
        settings = cell.job(root).model_dump(mode="json", exclude=ELSEWHERE)
        yield cell.name, yaml.safe_dump({cell.command: settings}, sort_keys=False)
