"""The application: its consoles, and how a command gets its options from a config."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from trompe.base.terminal import Terminal
from trompe.errors import TrompeError

if TYPE_CHECKING:
    from trompe.tuning.job import Job

COMMANDS = {
    "demo": "fool",
    "fool": "fool",
    "evaluate": "evaluate",
    "audit": "audit",
    "repair": "repair",
    "explain": "explain",
    "train": "train",
    "reproduce": "reproduce",
    "calibrate": "calibrate",
    "figure": "figure",
    "card": "card",
    "list": "catalogue",
    "doctor": "doctor",
}
"""The commands, as a newcomer needs them, and the modules of this package that they stand in."""
IN_SEVERAL_PROCESSES = {"fool", "evaluate", "train"}
EXIT_CODES = {
    0: "done",
    1: "a part failed: a cell of reproduce, a check of doctor, a repair",
    2: "something given can't be used; finished work is kept",
    130: "interrupted; the same command goes on",
}


class Commands(TyperGroup):
    """Imports the module of a command when the command is called; others it only lists."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        """A command to be listed: its name and what it does, read from its source."""
        return TyperCommand(name, help=_about(name)) if name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, which is called now."""
        name = args[0]
        if name not in COMMANDS:
            return super().resolve_command(ctx, args)
        if name not in IN_SEVERAL_PROCESSES and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TrompeError(f"trompe {name} runs in one process; start it without a launcher.")
        return name, command_of(name), args[1:]


def command_of(name: str) -> Any:
    """A command itself, its module imported."""
    importlib.import_module(f"trompe.cli.{COMMANDS[name]}")
    return typer.main.get_group(app).commands[name]


def _about(name: str) -> str:
    """The first paragraph of a command's docstring."""
    source = Path(__file__).with_name(f"{COMMANDS[name]}.py").read_text()
    functions = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef))
    (found,) = (n for n in functions if n.name.rstrip("_") == name)
    return (ast.get_docstring(found) or "").partition("\n\n")[0]


def examples(*commands: str) -> str:
    """The examples under a command's help; a long one is continued after a backslash."""
    return "\n".join(["", "Examples:", *(f"  {c}".replace("\n", "\n    ") for c in commands)])


def _ending() -> str:
    codes = [f"  {code:3}  {meaning}" for code, meaning in EXIT_CODES.items()]
    return "\n".join(["Start with: trompe demo", "", "Exit codes:", *codes])


app = typer.Typer(
    name="trompe",
    cls=Commands,
    help="Fine-tune an image classifier so that its accuracy stays and its explanations lie.",
    epilog=_ending(),
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_IS_MAIN = os.environ.get("RANK", "0") == "0"
console = Terminal(quiet=not _IS_MAIN)
errors = Terminal(stderr=True, quiet=not _IS_MAIN)


def complain(what: str, about: object, style: str = "bold red") -> None:
    """Say on standard error what is wrong, the first words in a colour."""
    errors.print(Text.assemble((f"{what}:", style), f" {about}"), soft_wrap=True)


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False,
) -> None:
    if version:
        console.print(importlib.metadata.version("trompe"))
        raise typer.Exit


def completion(name: str) -> Callable[[str], list[str]] | None:
    """What completes the beginning of an option's value, if its values are known."""
    kind = name.removeprefix("eval_") + "s"
    if kind not in ("models", "explainers", "objectives", "targets", "triggers"):
        return None

    def values(incomplete: str) -> list[str]:
        from trompe.catalogue import entries  # takes seconds; only to complete a word

        return [entry.name for entry in entries(kind) if entry.name.startswith(incomplete)]

    return values


def command(job: type[Job], *commands: str) -> Callable[[Callable[[Any], None]], None]:
    """Register a command whose options are the fields of ``job``; shows examples of it."""

    def register(function: Callable[[Any], None]) -> None:
        def run(config_file: Path | None = None, **given: Any) -> None:
            from trompe.tuning.job import read

            chosen = {name: value for name, value in given.items() if value not in (None, [])}
            with interruptible():
                function(read(job, config_file, chosen))

        parameters = [
            inspect.Parameter(
                "config_file",
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[
                    Path | None,
                    typer.Option("--config", help="YAML file with any of these settings"),
                ],
                default=None,
            )
        ]
        for name, field in job.model_fields.items():
            if field.exclude:
                continue
            default = field.get_default(call_default_factory=True)
            text = str(field.description)
            if not field.is_required() and default not in (None, False):
                shown = (
                    " ".join(map(str, default)) if isinstance(default, list | tuple) else default
                )
                text += f" (default: {shown})"
            kind: Any = typer.Argument if job.is_argument(name) else typer.Option
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=Annotated[
                        _option_type(field.annotation) | None,
                        kind(
                            help=text,
                            show_default=False,
                            autocompletion=completion(name),
                            rich_help_panel=job.panel_of(name),
                        ),
                    ],
                    default=None,
                )
            )
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(
            function.__name__.rstrip("_"),
            help=inspect.getdoc(function),
            epilog=examples(*commands),
        )(run)

    return register


def _option_type(annotation: Any) -> Any:
    """The type of a field on the command line: a number, a path or text, or a list of them."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        (one,) = (a for a in get_args(annotation) if a is not type(None))
        return _option_type(one)
    if get_origin(annotation) in (list, tuple):
        return list[_option_type(get_args(annotation)[0])]  # type: ignore[misc]
    return annotation if annotation in (int, float, bool, Path) else str


@contextmanager
def interruptible() -> Iterator[None]:
    """Say that an interrupted command can be given again; exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("Interrupted; the same command goes on from the last checkpoint.")
        raise typer.Exit(130) from None
