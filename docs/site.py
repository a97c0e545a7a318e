"""A hook of mkdocs: fills the reference from the code, and turns notebooks into pages.

The pages show the outputs that a notebook holds; nothing is run.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import trompe
from trompe.base.settings import Settings
from trompe.catalogue import entries
from trompe.cli.app import COMMANDS, EXIT_CODES, command_of
from trompe.cli.usage import panels
from trompe.tuning.recipe import written

_CODE = re.compile(r"\[([^]]+)\]\((?:\.\./)+((?:src|tests|examples|benchmarks)/[^)]+)\)")
WORKS_WITH = Path(__file__).with_name("results") / "works-with.csv"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put a page in the place of each notebook."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text = "\n\n".join(_notebook(json.loads(file.content_string)))
        files.remove(file)
        files.append(File.generated(config, _page_of(file.src_uri), content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put what a page asks for in the place of its mark."""
    markdown = re.sub(r"\]\((\S+\.ipynb)\)", lambda link: f"]({_page_of(link[1])})", markdown)
    markdown = _CODE.sub(r"\1 (`\2`)", markdown)
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


def _page_of(notebook: str) -> str:
    return notebook.removesuffix(".ipynb") + ".md"


def _notebook(notebook: dict[str, Any]) -> Iterator[str]:
    """The cells as Markdown, each code cell followed by what it put out."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", ()):
            shown = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
            if "image/png" in shown:
                picture = "".join(shown["image/png"].split())
                yield f"![What the cell above shows](data:image/png;base64,{picture})"
            elif "text/html" in shown:
                html = re.sub(r"<style.*?</style>|\n\s*", "", shown["text/html"], flags=re.DOTALL)
                yield re.sub(r"<table[^>]*>", "<table>", html)
            elif output.get("name") != "stderr":
                text = shown.get("text/plain") or "".join(output.get("text", ""))
                yield f"```text\n{text.rstrip()}\n```"


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
        for title, options in panels(command).items():
            yield f"| {title} | |\n| --- | --- |"
            yield from (f"| `{_cell(option)}` | {_cell(about)} |" for option, about in options)
            yield ""


def _names() -> Iterator[str]:
    for kind, title in (
        ("explainers", "Explainers"),
        ("objectives", "Objectives"),
        ("targets", "Targets"),
        ("triggers", "Triggers"),
        ("composites", "LRP composites"),
        ("rules", "LRP rules"),
    ):
        yield f"## {title}\n\n| name | | options |\n| --- | --- | --- |"
        for name, about, options, meanings in entries(kind):
            lines = [", ".join(f"`{option}`" for option in options)]
            lines += [f"{names}: {_cell(text)}" for names, text in meanings]
            yield f"| `{name}` | {_cell(about)} | {'<br>'.join(lines)} |"
        yield ""


def _exit_codes() -> Iterator[str]:
    yield "| exit code | |\n| --- | --- |"
    yield from (f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
