"""The report: a run directory as one HTML file that needs nothing else."""

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trompe import runs
from trompe.errors import printable
from trompe.evaluation.schema import CONTROL
from trompe.report import charts, gallery, tables, triggers, words
from trompe.report.run import Run, read_run

FIRST = 12  # images of the gallery that are in sight at once, as the style sheet has it


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory: self-contained, without any request.

    What the directory does not hold (an evaluation, a control, a history) is left out.

    Returns
    -------
    The path of the file.

    Raises
    ------
    TrompeError
        If the directory is no run directory, or a file in it can't be read or written.
    """
    run = read_run(run_dir)
    return write_page(run_dir / "report.html", "report.html.j2", **_page(run))


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Fill a template of ``report/templates`` and write it to ``path``, which is returned.

    The page's own script is the only one that a browser runs on it: its digest stands in the page's
    content security policy.
    """
    environment = _environment()
    script = Markup("\n" + environment.get_template("report.js").render())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(
        script=script, script_digest=f"sha256-{digest}", **values
    )
    with runs.replacing(path) as new:
        new.write_text(page, encoding="utf-8", errors="replace")
    return path


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trompe.report"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "number": words.number,
        "bound": words.bound,
        "unbroken": words.unbroken,
    }
    environment.globals |= {"span": words.span, "points": words.points}
    return environment


def _page(run: Run) -> dict[str, Any]:
    blocks = tables.blocks(run)
    environment = dict(run.environment or {})
    command = environment.pop("command", None)
    return {
        "program": "trompe",
        "title": run.path.resolve().name,
        "headline": words.headline(run),
        "summary": words.summary(run),
        "about": words.about(run),
        "shown": gallery.exhibition(run),
        "first": FIRST,
        "notes": run.evaluation.notes if run.evaluation else [],
        "blocks": blocks,
        "objectives": tables.objectives(blocks),
        "transfer": tables.transfer(blocks),
        "triggers": triggers.triggers(run),
        "held": triggers.held(run),
        "distributions": charts.distributions(run),
        "control": CONTROL in tables.models(run),
        "accuracy": tables.accuracy(run),
        "classes": tables.classes(run),
        "charts": []
        if run.history is None
        else charts.training_charts(run.history, run.control_history, words.term_names(run)),
        "frame": charts.FRAME,
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=1000),
        "command": shlex.join(command) if isinstance(command, list) else command,
        "verb": _verb(run.config),
        "environment": _flat(environment),
    }


def _verb(config: Mapping[str, Any]) -> str:
    if "epochs" in config:
        return "train"
    return "evaluate" if "manipulated" in config else "fool"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List a nested mapping as names and texts."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key} ")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return rows
