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
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from rich.text import Text
from typer.core import TyperGroup

from trompe.base.terminal import Terminal
from trompe.cli.usage import Command, ordered, panel_of, show_help
from trompe.errors import TrompeError

if TYPE_CHECKING:
    from trompe.tuning.job import Job

COMMANDS = {
    "demo": "fool",
    "fool": "fool",
    "evaluate": "evaluate",
    "audit": "audit",
    "compare": "compare",
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
NOUNS = {"MODEL", "WEIGHTS", "DATA", "EXPLAINER", "OBJECTIVE", "TARGET", "TRACKER"}
IN_SEVERAL_PROCESSES = {"fool", "evaluate", "train"}
EXIT_CODES = {
    0: "done",
    1: "a part failed: a cell of reproduce, a run of a sweep, a check of doctor, a repair",
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
        return Command(name, help=_about(name)) if name in COMMANDS else None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the commands and what they do."""
        show_help(self, ctx, {name: _about(name) for name in COMMANDS})

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


def command(job: type[Job], *commands: str) -> Callable[[Callable[..., None]], None]:
    """Register a command whose options are the fields of ``job``; shows examples of it.

    What the function takes besides the job are further options.
    """

    def register(function: Callable[..., None]) -> None:
        _, *more = inspect.signature(function, eval_str=True).parameters.values()

        def run(config_file: Path | None = None, **given: Any) -> None:
            from trompe.runs import check_place
            from trompe.tuning.job import read

            besides = {one.name: given.pop(one.name) for one in more}
            chosen = {name: value for name, value in given.items() if value not in (None, [])}
            config = read(job, config_file, chosen)
            if config.out is not None:
                check_place(config.out)
            with interruptible():
                function(config, **besides)

        fields = [name for name, field in job.model_fields.items() if not field.exclude]
        parameters = [_parameter(job, name) for name in ordered(fields)]
        config = typer.Option(
            "--config",
            metavar="FILE",
            help="YAML file with any of these settings, such as a run's config.yaml; --no-quiet "
            "turns off what it turns on",
            rich_help_panel=panel_of(job, "config"),
        )
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters += [
            one.replace(kind=keyword)
            for one in (
                inspect.Parameter(
                    "config_file", keyword, annotation=Annotated[Path | None, config], default=None
                ),
                *more,
            )
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(
            function.__name__.rstrip("_"),
            cls=Command,
            help=inspect.getdoc(function),
            epilog=examples(*commands),
        )(run)

    return register


def _parameter(job: type[Job], name: str) -> inspect.Parameter:
    """A field of a job as an option or an argument."""
    field = job.model_fields[name]
    text = str(field.description)
    if field.is_required():
        text += " (required)"
    elif (default := field.get_default(call_default_factory=True)) is not None and (
        default is not False
    ):
        several = isinstance(default, list | tuple)
        text += f" (default: {' '.join(map(str, default)) if several else _shown(default)})"
    kind: Any = typer.Argument if job.is_argument(name) else typer.Option
    told = kind(
        help=text,
        metavar=name.upper() if job.is_argument(name) else _metavar(name, field.annotation),
        show_default=False,
        autocompletion=completion(name),
        rich_help_panel=panel_of(job, name),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[_option_type(field.annotation) | None, told],
        default=None,
    )


def _shown(default: Any) -> str:
    return "on" if default is True else str(default)


def _inner(annotation: Any) -> Any:
    """A field's type without what may be left out and what it is annotated with."""
    if get_origin(annotation) is Annotated:
        return _inner(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        (one,) = (a for a in get_args(annotation) if a is not type(None))
        return _inner(one)
    return annotation


def _option_type(annotation: Any) -> Any:
    """The type of a field on the command line: a number, a path or text, or a list of them."""
    inner = _inner(annotation)
    if get_origin(inner) in (list, tuple):
        return list[_option_type(get_args(inner)[0])]  # type: ignore[misc]
    return inner if inner in (int, float, bool, Path) else str


def _metavar(name: str, annotation: Any) -> str | None:
    """What stands for a value in help: its choices, its kind, or the last word of its name."""
    inner = _inner(annotation)
    if inner is bool:
        return None
    if get_origin(inner) is Literal:
        return "|".join(get_args(inner))
    if get_origin(inner) in (list, tuple):
        return f"{_metavar(name, get_args(inner)[0])}..."
    last = name.rpartition("_")[2].upper()
    of_kind = {int: "N", float: "X", Path: "FOLDER" if name == "out" else "FILE"}
    return of_kind.get(inner, last if last in NOUNS else "NAME")


@contextmanager
def interruptible() -> Iterator[None]:
    """Say that an interrupted command can be given again; exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("Interrupted; the same command goes on from the last checkpoint.")
        raise typer.Exit(130) from None
