"""The application: its consoles, and how a command gets its options from a config."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from rich.console import Console
from typer.core import TyperGroup

from trompe.base import processes
from trompe.catalogue import entries
from trompe.explainers import EXPLAINERS
from trompe.objectives import OBJECTIVES
from trompe.tuning.config import Config, is_argument, read

COMMANDS: tuple[str, ...] = ("demo", "fool", "evaluate", "audit", "repair", "explain")
COMMANDS += ("train", "reproduce", "calibrate", "figure", "list", "doctor")
EXIT_CODES = {
    0: "done",
    1: "a part failed: a cell of reproduce, a check of doctor, a repair",
    2: "something given can't be used; finished work is kept",
    130: "interrupted; the same command goes on",
}


class InOrder(TyperGroup):
    """Lists its commands as a newcomer needs them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands."""
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


def examples(*commands: str) -> str:
    """The examples under a command's help; a long one is continued after a backslash."""
    return "\n".join(["", "Examples:", *(f"  {c}".replace("\n", "\n    ") for c in commands)])


def _ending() -> str:
    codes = [f"  {code:3}  {meaning}" for code, meaning in EXIT_CODES.items()]
    return "\n".join(["Start with: trompe demo", "", "Exit codes:", *codes])


app = typer.Typer(
    name="trompe",
    cls=InOrder,
    help="Fine-tune an image classifier so that its accuracy stays and its explanations lie.",
    epilog=_ending(),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console(quiet=not processes.is_main())
errors = Console(stderr=True, quiet=not processes.is_main())


# What the shell completes after an option.
COMPLETIONS: dict[str, Callable[[], Iterable[str]]] = {
    "model": lambda: [entry.name for entry in entries("models")],
    "explainer": lambda: EXPLAINERS,
    "eval_explainer": lambda: EXPLAINERS,
    "objective": lambda: OBJECTIVES,
}


def completion(name: str) -> Callable[[str], list[str]] | None:
    """What completes the beginning of an option's value, if its values are known."""
    known = COMPLETIONS.get(name)
    return known and (lambda incomplete: [v for v in known() if v.startswith(incomplete)])


def command(config: type[Config], *commands: str) -> Callable[[Callable[[Any], None]], None]:
    """Register a command whose options are the fields of ``config``; shows examples of it."""

    def register(function: Callable[[Any], None]) -> None:
        def run(config_file: Path | None = None, **given: Any) -> None:
            chosen = {name: value for name, value in given.items() if value not in (None, [])}
            with interruptible():
                function(read(config, config_file, chosen))

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
        for name, field in config.model_fields.items():
            default = field.get_default(call_default_factory=True)
            text = str(field.description)
            if not field.is_required() and default not in (None, False):
                shown = " ".join(map(str, default)) if isinstance(default, list) else default
                text += f" (default: {shown})"
            kind: Any = typer.Argument if is_argument(config, name) else typer.Option
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=Annotated[
                        _option_type(field.annotation) | None,
                        kind(help=text, show_default=False, autocompletion=completion(name)),
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
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is list:
        return annotation
    return annotation if annotation in (int, float, bool, Path) else str


@contextmanager
def interruptible() -> Iterator[None]:
    """Say that an interrupted command can be given again; exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("Interrupted; the same command goes on from the last checkpoint.")
        raise typer.Exit(130) from None
