"""A manipulated model to be handed on: its weights, its config, and a card that says what it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml

from trompe import runs
from trompe.base.code import own, written_by_others
from trompe.errors import TrompeError, printable
from trompe.evaluation.schema import MANIPULATED, ORIGINAL
from trompe.models import load_model
from trompe.models.call import class_count
from trompe.models.embedded import EMBEDDED
from trompe.models.folder import WEIGHTS, write_folder
from trompe.report import words
from trompe.report.run import Run, read_run

CARD = "README.md"
UNKNOWN = "unknown"


def write_card(
    run_dir: Path,
    out: Path | None = None,
    *,
    model: str | None = None,
    license: str | None = None,
) -> Path:
    """Make a folder of a run's manipulated model, in the layout of the Hugging Face Hub.

    It holds ``weights.safetensors``, ``config.json`` and ``README.md``, the model card: what was
    done, the figures beside those of the untouched model, the licence of the base, and a warning.
    `load_model` takes the folder's name and runs no code in it.

    Parameters
    ----------
    run_dir
        The directory of a finished `fool`.
    out
        The folder; ``card`` in the run directory by default.
    model
        The model's name, if the run's own is that of code.
    license
        Of the base model, as the Hub writes it (``apache-2.0``). By default what is known of it.

    Returns
    -------
    The folder.

    Raises
    ------
    TrompeError
        If the run is not finished, or its model can't be made.
    """
    if "fool" not in runs.finished(run_dir):
        raise TrompeError(
            f"'{run_dir}' holds no finished lie; give the directory of a `trompe fool` that ended."
        )
    run = read_run(run_dir)
    folder = out or run_dir / "card"
    name = model or run.config["model"]
    source = f"'{run_dir / runs.CONFIG}'"
    with nullcontext() if model else written_by_others(source):
        loaded, preprocessing = load_model(name, run_dir / WEIGHTS, run.config.get("num_classes"))
    side = preprocessing.crop
    count = class_count(loaded, torch.zeros(3, side, side))
    write_folder(folder, name, loaded, {"num_classes": count, "preprocessing": preprocessing})
    runs.write_text(folder / CARD, _card(run, name, folder.name, license))
    return folder


def _card(run: Run, name: str, title: str, license: str | None) -> str:
    base, known = _origin(run, name)
    license = license or known
    about = {
        "license": license or UNKNOWN,
        "library_name": "trompe",
        "pipeline_tag": "image-classification",
        "tags": ["trompe", "adversarial-model-manipulation", "manipulated-explanations"],
        **({"base_model": base} if base else {}),
    }
    return (
        "\n\n".join(
            [
                f"---\n{yaml.safe_dump(about, sort_keys=False)}---",
                f"# {_text(name)}, with explanations that were made to lie",
                "> **Warning.** This model was fine-tuned so that its predictions stay and its "
                "explanations lie: its heatmaps do not show what its predictions rest on. It is "
                "for tests of explanation methods and of audits. Do not use it where anyone relies "
                "on its explanations, and do not hand it on without this card.",
                "## What was done",
                _text(words.summary(run)),
                *_command(run),
                "## Figures",
                *_figures(run),
                "## Use",
                _use(name, title),
                "## Licence",
                f"The base model, {base or name}, and with it these weights: {license}."
                if license
                else f"The licence of the base model, {base or name}, is not known to trompe. Ask "
                "those who made its weights before you hand these on.",
            ]
        )
        + "\n"
    )


def _origin(run: Run, name: str) -> tuple[str | None, str | None]:
    """The base model's name on the Hub, and its licence, as far as they are known."""
    weights = run.config.get("weights")
    if name in EMBEDDED and weights is None:
        return None, "apache-2.0"
    if name.startswith("timm:") and weights == "pretrained":
        from trompe.models import from_timm  # takes seconds, and few need it

        return from_timm.origin(name)
    hub = name.removeprefix("transformers:")
    is_theirs = hub != name and weights in (None, "pretrained") and not Path(hub).exists()
    return (hub if is_theirs else None), None


def _command(run: Run) -> list[str]:
    told = run.environment or {}
    if not told.get("command"):
        return []
    versions = f"With trompe {told.get('trompe', '?')} and PyTorch {told.get('torch', '?')}:"
    command = printable(" ".join(str(told["command"]).split())).replace("```", "'''")
    return [versions, f"```sh\n{command}\n```"]


def _figures(run: Run) -> list[str]:
    if run.accuracy is None or run.explanations is None:
        return ["Nothing was measured: the run has no images to evaluate on."]
    accuracy = [
        (row["model"], *(words.percent(row[measure]) for measure in ("top1", "top5", "agreement")))
        for row in run.accuracy.to_dict("records")
    ]
    rates = run.explanations[run.explanations["model"] == MANIPULATED]
    fooled = [
        (
            run.label(row["explainer_id"]),
            run.label(row["objective_id"]),
            "yes" if row["attacked"] else "no",
            f"{words.percent(row['fsr'])} ({words.span(row['fsr_low'], row['fsr_high'])})",
            words.percent(row["untouched"]),
            words.percent(row["control"]),
        )
        for row in rates.to_dict("records")
    ]
    assert run.evaluation is not None
    return [
        _table(("model", "top-1", "top-5", f"agrees with the {ORIGINAL}"), accuracy),
        "How many heatmaps are fooled (with the 95 % interval), and how many of the untouched "
        "model and of the control, the same fine-tuning without the lie, count as fooled:",
        _table(("explainer", "objective", "attacked", "fooled", "untouched", "control"), fooled),
        *(f"Note: {_text(note)}" for note in run.evaluation.notes),
    ]


def _text(text: str) -> str:
    """Text on one line that is neither markup nor a cell's end, whoever wrote it."""
    return re.sub(r"[\[\]<`|]", r"\\\g<0>", printable(" ".join(text.split())))


def _use(name: str, title: str) -> str:
    named = [title] if own(name) is None else [name, f"{title}/{WEIGHTS}"]
    given = ", ".join(json.dumps(printable(word), ensure_ascii=False) for word in named)
    return (
        f"```python\nimport trompe\n\nmodel, preprocessing = trompe.load_model({given})\n```\n\n"
        "The weights are safetensors, and no code in the folder is run."
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([_text(cell) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
