"""A hook of mkdocs: fills the reference of the commands from the code that runs them."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import trompe
from trompe.base.settings import Settings
from trompe.catalogue import entries
from trompe.cli.app import COMMANDS, EXIT_CODES, command_of
from trompe.tuning.recipe import written

WORKS_WITH = Path(__file__).with_name("results") / "works-with.csv"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put what a page asks for in the place of its mark."""
    for mark, lines in (
        ("commands", _commands),
        ("names", _names),
        ("exit codes", _exit_codes),
        ("works with", _works_with),
    ):
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", "\n".join(lines()))
    for name in re.findall(r"<!-- settings (\w+) -->", markdown):
        lines = _settings(getattr(trompe, name))
        markdown = markdown.replace(f"<!-- settings {name} -->", "\n".join(lines))
    return markdown


def _settings(recipe: type[Settings]) -> Iterator[str]:
    yield "| setting | default | |\n| --- | --- | --- |"
    for name, field in recipe.model_fields.items():
        default = "" if field.is_required() else f"`{written(field.default)}`"
        yield f"| `{name}` | {default} | {_cell(field.description or '')} |"
    yield ""


def _works_with() -> Iterator[str]:
    with WORKS_WITH.open(newline="") as file:
        rows = list(csv.DictReader(file))
    explainers = list(dict.fromkeys(row["explainer"] for row in rows))
    reasons: dict[str, int] = {}
    yield f"| model | {' | '.join(explainers)} |\n| --- |{' --- |' * len(explainers)}"
    for model in dict.fromkeys(row["model"] for row in rows):
        found = [row["outcome"] for row in rows if row["model"] == model]
        cells = [
            "works" if one == "works" else f"refused [{reasons.setdefault(one, len(reasons) + 1)}]"
            for one in found
        ]
        yield f"| {model} | {' | '.join(cells)} |"
    yield ""
    yield from (f"{number}. {reason}" for reason, number in reasons.items())
    yield ""


def _commands() -> Iterator[str]:
    for name in COMMANDS:
        command = command_of(name)
        yield f"## trompe {name}\n\n{command.help}\n"
        heading, _, examples = command.epilog.strip().partition("\n")
        yield f"{heading}\n\n```sh\n{dedent(examples)}\n```\n"
        yield "| option | |\n| --- | --- |"
        for parameter in command.params:
            written = " / ".join(parameter.opts + parameter.secondary_opts)
            yield f"| `{written}` | {_cell(parameter.help or '')} |"
        yield ""


def _names() -> Iterator[str]:
    for kind, title in (
        ("explainers", "Explainers"),
        ("objectives", "Objectives"),
        ("targets", "Targets"),
        ("triggers", "Triggers"),
        ("composites", "LRP composites"),
    ):
        yield f"## {title}\n\n| name | | options |\n| --- | --- | --- |"
        for name, about, options in entries(kind):
            written = ", ".join(f"`{option}`" for option in options)
            yield f"| `{name}` | {_cell(about)} | {written} |"
        yield ""


def _exit_codes() -> Iterator[str]:
    yield "| exit code | |\n| --- | --- |"
    yield from (f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
