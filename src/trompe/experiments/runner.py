"""Run the cells of a grid side by side, on one machine or on many."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import yaml

from trompe import runs
from trompe.errors import TrompeError
from trompe.tuning.plan import Planned

Main = Callable[[Sequence[str]], None]
Submit = Callable[[Planned, Path], "Future[str | None]"]
P = TypeVar("P", bound=Planned)
LOG = ".log"


def is_finished(cell: Planned, root: Path) -> bool:
    """Whether a run of the cell under ``root`` went through to its report."""
    return "report" in runs.finished(root / cell.folder)


def at_a_time(jobs: int | None) -> int:
    """How many cells run at a time: so many, or one per GPU, or per core without any."""
    return jobs or torch.cuda.device_count() or len(os.sched_getaffinity(0))


def run_cells(
    cells: Sequence[P],
    root: Path,
    main: Main,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    report: Callable[[P, str | None], None] = lambda cell, failure: None,
    begun: Callable[[P], None] = lambda cell: None,
) -> dict[P, str]:
    """Run what is not finished yet; a cell that fails does not keep the others from running.

    The first one in order whose base is finished is the next to run.

    Every cell is a process of its own, ``trompe train`` or ``trompe fool``, that writes what it
    says to ``.log`` in its run directory, goes on where an interrupted one stopped, and ends when
    this process does, however that ended.

    Parameters
    ----------
    cells
        The most important first.
    root
        The directory of all run directories; on all machines the same, if there are many.
    main
        Carries a command line out; a function that another process can import.
    jobs
        Cells at a time on this machine, each with its share of the processor cores unless
        OMP_NUM_THREADS says otherwise; by default one per GPU, or per core without any.
    ray
        Address of a Ray cluster (``"auto"``, ``"local"`` or ``HOST:PORT``) to run them on instead.
    report
        Called with every cell that has ended, and why it failed if it did.
    begun
        Called with every cell that is started; on a cluster, given to it.

    Returns
    -------
    Why the cells that failed did so.

    Raises
    ------
    TrompeError
        If the directory is in use by another grid, or Ray can't be used.
    """
    waiting = [cell for cell in cells if not is_finished(cell, root)]
    failures: dict[P, str] = {}
    running: dict[Future[str | None], P] = {}
    ended: list[tuple[P, str | None]] = []
    jobs = at_a_time(jobs)
    at_once = len(waiting) if ray else jobs
    with runs.locked(root), _on_ray(main, ray) if ray else _on_this_machine(main, jobs) as submit:
        while waiting or running:
            for cell in list(waiting):
                if cell.base in failures:
                    waiting.remove(cell)
                    failures[cell] = f"{cell.base.name} failed"
                    ended.append((cell, failures[cell]))
                elif len(running) < at_once and cell.base not in (*waiting, *running.values()):
                    waiting.remove(cell)
                    running[submit(cell, root)] = cell
                    begun(cell)
            while ended:  # reported while the next ones run
                report(*ended.pop(0))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                error = future.exception()
                failure = f"{type(error).__name__}: {error}" if error else future.result()
                if failure:
                    failures[cell] = failure
                ended.append((cell, failure))
        for last in ended:
            report(*last)
    return failures


def run_cell(cell: Planned, root: Path, main: Main, threads: int = 1) -> str | None:
    """Run one cell to its end in its own process; returns the last line it said if it failed."""
    directory = root / cell.folder
    directory.mkdir(parents=True, exist_ok=True)
    config, log = directory / ".cell.yaml", directory / LOG
    settings = cell.job(root).model_dump(mode="json", exclude_unset=True)
    runs.write_text(config, yaml.safe_dump({**settings, "quiet": True}, sort_keys=False))
    words = [cell.command, "--config", str(config), "--out", str(directory)]
    context = multiprocessing.get_context("forkserver")  # which has imported everything once
    context.set_forkserver_preload([main.__module__])
    process = context.Process(
        target=_run, args=(main, words, log, threads, dict(os.environ)), daemon=True
    )
    process.start()
    process.join()
    if process.exitcode == 0 or is_finished(cell, root):  # what ends badly after it has not failed
        return None
    said = log.read_text().strip().splitlines() if log.exists() else []
    return said[-1] if said else f"the process ended with code {process.exitcode}"


def _run(
    main: Main, words: list[str], log: Path, threads: int, environment: dict[str, str]
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.current_process().daemon = False  # it may have worker processes,
    multiprocessing.set_start_method(None, force=True)  # begun as they would be without a grid
    os.environ.update(environment)  # the forkserver has that of its first cell
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    main(words)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


@contextmanager
def _on_this_machine(main: Main, jobs: int) -> Iterator[Submit]:
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    pool = ThreadPoolExecutor(jobs)
    try:
        yield lambda cell, root: pool.submit(run_cell, cell, root, main, threads)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _on_ray(main: Main, address: str) -> Iterator[Submit]:
    try:
        import ray
    except ImportError as error:
        raise TrompeError("--ray needs Ray; install it with: pip install 'trompe[ray]'.") from error
    try:
        ray.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise TrompeError(
            f"There is no Ray cluster at '{address}' ({error}); start one with: ray start --head."
        ) from error
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_cell)
        yield lambda cell, root: task.remote(cell, root.resolve(), main).future()
    finally:
        ray.shutdown()
