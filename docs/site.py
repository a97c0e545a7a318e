"""A hook of mkdocs: fills the reference of the commands from the code that runs them."""

from collections.abc import Iterator
from textwrap import dedent

from trompe.catalogue import entries
from trompe.cli.app import COMMANDS, EXIT_CODES, command_of


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put what a page asks for in the place of its mark."""
    for mark, lines in (("commands", _commands), ("names", _names), ("exit codes", _exit_codes)):
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", "\n".join(lines()))
    return markdown


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
