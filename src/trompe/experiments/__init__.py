"""The paper's experiments: the grid as data, its runner, its tables."""

from trompe.experiments.grid import SCALES, SECTIONS, Cell, Grid, load_grid, paper, texts
from trompe.experiments.results import Results, collect
from trompe.experiments.runner import is_finished, run_cells
from trompe.experiments.state import last_known, states

__all__ = [
    "SCALES",
    "SECTIONS",
    "Cell",
    "Grid",
    "Results",
    "collect",
    "is_finished",
    "last_known",
    "load_grid",
    "paper",
    "run_cells",
    "states",
    "texts",
]
