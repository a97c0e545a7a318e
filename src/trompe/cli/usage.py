"""What a command shows of itself with ``--help``, and what it says to a line it can't read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import typer
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperCommand

from trompe.base.messages import did_you_mean
from trompe.base.terminal import Terminal

if TYPE_CHECKING:
    from trompe.tuning.job import Job

PANELS = {
    "Model": "suspect model weights num_classes manipulated reference teacher teacher_weights",
    "Data": "data images limit augment min_area label_noise class_map teacher_class_map corrupt "
    "check workers",
    "Lie": "explainer objective trigger flip_to weight hold target classes opposition faintness "
    "pairs",
    "Tuning": "epochs steps lr rate schedule batch_size max_accuracy_drop max_drop control "
    "keep labels held_out fool_batch_size seed device precision gradient_checkpointing "
    "max_grad_norm weight_decay label_smoothing distillation batch_norm sides checkpoint_every",
    "Measuring": "eval_data eval_limit eval_explainer eval_pairs evidence calibration gallery",
    "Many runs": "seeds sweep jobs",
    "Output": "out tracker quiet",
}
"""The headings of a command's settings, and their order: what most people need comes first."""
LAST = "Output"
WIDEST = 100  # columns of a help text
UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""The command line can't be read."""


def panel_of(job: type[Job], name: str) -> str:
    """The heading under which help shows a setting."""
    told = (job.model_fields[name].json_schema_extra or {}) if name in job.model_fields else {}
    if isinstance(told, dict) and "panel" in told:
        return str(told["panel"])
    panel = next((panel for panel, names in PANELS.items() if name in names.split()), LAST)
    if panel == "Lie" and "opposition" not in job.model_fields:
        return "Explanations"
    if panel == "Tuning" and not {"steps", "epochs"} & job.model_fields.keys():
        return "Running"
    return panel


def ordered(names: Iterable[str]) -> list[str]:
    """Settings in the order of `PANELS`."""
    order = " ".join(PANELS.values()).split()
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


class Command(TyperCommand):
    """A command whose help reads well at 80 columns."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print what the command does, examples, and its options by panel."""
        show_help(self, ctx)


def show_help(command: Any, ctx: Any, listed: Mapping[str, str] | None = None) -> None:
    """Print the help of a command, or of several that are ``listed`` with what they do."""
    console = Terminal(highlight=False)
    width = min(console.width, WIDEST)
    needed = [_needed(option) for option in command.params]
    words = [ctx.command_path, *needed, "COMMAND" if listed else "[OPTIONS]"]
    console.print(Text.assemble("Usage: ", (" ".join(filter(None, words)), "bold")))
    for paragraph in (command.help or "").split("\n\n"):
        console.print("", Text(paragraph.replace("\n", " ")), sep="\n", width=width)
    console.print("", Text((command.epilog or "").strip()), "", sep="\n", soft_wrap=True)
    shown = {"Commands": [*listed.items()]} if listed else {}
    for title, rows in (shown | panels(command)).items():
        table = Table.grid(Column(max_width=width * 3 // 8), Column(), padding=(0, 2, 0, 0))
        for name, about in rows:
            text = Text(about)
            text.highlight_regex(r"\(default:? .*\)$", "dim")
            text.highlight_regex(r"\(required\)$", "bold yellow")
            table.add_row(Text(name, style="cyan"), text)
        console.print(
            Panel(table, title=title, title_align="left", border_style="dim", width=width)
        )


def panels(command: Any) -> dict[str, list[tuple[str, str]]]:
    """The options of a command by heading: as they are typed, and what they are."""
    found: dict[str, list[tuple[str, str]]] = {}
    for option in command.params:
        if not getattr(option, "hidden", False):
            title = getattr(option, "rich_help_panel", None) or "Options"
            found.setdefault(title, []).append((_written(option), _about(option)))
    return found


def _needed(parameter: Any) -> str:
    """What the usage line says of an option: nothing, if it may be left out."""
    is_argument = parameter.param_type_name == "argument"
    if _is_required(parameter):
        return _written(parameter)
    return f"[{_written(parameter)}]" if is_argument else ""


def _written(parameter: Any) -> str:
    """An option as it is typed: ``--steps N``, ``--check/--no-check``, or an argument's name."""
    shown = parameter.metavar or ""
    if parameter.param_type_name == "argument":
        return shown or parameter.name.upper()
    name = parameter.opts[0]
    if parameter.default is True or (parameter.help or "").endswith("(default: on)"):
        return f"{name}/{parameter.secondary_opts[0]}"
    return f"{name} {shown}".strip()


def _is_required(parameter: Any) -> bool:
    return parameter.required or (parameter.help or "").endswith("(required)")


def _about(parameter: Any) -> str:
    text, default = parameter.help or "", parameter.default
    if parameter.required:
        return f"{text} (required)"
    if default is None or default is False or "(default" in text:
        return text
    return f"{text} (default: {default})"


def sentence(error: Any) -> str:
    """A command line that can't be read, in one sentence that says what to do."""
    said = str(error.format_message()).rstrip(".")
    name = str(getattr(error, "option_name", ""))
    parameter: Any = getattr(error, "param", None)
    if "requires an argument" in said:
        return f"{name} needs a value after it."
    if "No such option" in said:
        said = f"There is no option {name}{did_you_mean(name, error.possibilities or ())}"
    elif unknown := re.match(r"No such command '(.*?)'", said):
        known = error.ctx.command.list_commands(error.ctx)
        said = f"There is no command '{unknown[1]}'{did_you_mean(unknown[1], known)}"
    elif extra := re.search(r"unexpected extra .* \(([^()]*)\)$", said):
        said = f"'{extra[1]}' stands without an option's name before it"
    elif said.startswith("Missing"):
        said = f"{_written(parameter)} is missing: {parameter.help}"
    elif parameter is not None:
        said = f"{_written(parameter).split()[0]} {_expected(str(error.message))}"
    return f"{said}; see {error.ctx.command_path} --help."


def _expected(message: str) -> str:
    """What a value must be, of what a parser says of one that is not."""
    for words, expected in (
        ("integer", "must be a whole number"),
        ("valid number", "must be a number"),
        ("greater than or equal to", f"must be at least {message.split()[-1]}"),
    ):
        if words in message:
            return expected
    return f"can't be read: {message.removeprefix('Value error, ').rstrip('.')}"
