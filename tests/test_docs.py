"""Every code block of the README and the documentation runs; every command line is one."""

import ast
import re
import shlex
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import trompe.cli.fool
from trompe.cli.app import command_of
from trompe.cli.jobs import AuditJob, EvaluateJob, ExplainJob
from trompe.explainers import parse_explainer
from trompe.explainers.relevance.operations import RULES
from trompe.objectives import parse_objective
from trompe.tuning.job import FoolJob, TrainJob, read

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "results"))
import tables  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = {
    "audit": AuditJob,
    "fool": FoolJob,
    "evaluate": EvaluateJob,
    "explain": ExplainJob,
    "train": TrainJob,
}
# Only that it runs is asked here, so that few steps and images will do.
FEW = {"--steps": 2, "--epochs": 0.1, "--limit": 16, "--eval-limit": 16}
FEW |= {"--pairs": 4, "--eval-pairs": 4}
_BLOCK = re.compile(r"^```(\w*)(?: title=\"(.*?)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    title: str
    text: str

    @property
    def needs(self):
        """Whether it says that it needs what is not to be had here."""
        return self.text.startswith("# Needs ")


def blocks(page):
    return [Block(*found) for found in _BLOCK.findall(page.read_text())]


def commands(block):
    """The command lines of a block of shell, as words."""
    joined = block.text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in joined if line and line[0] != "#"]


def parsed(words):
    """The settings in a command line, read by the parser and checked as the command does."""
    name, *rest = words
    if "--help" in rest:
        return {}
    command = command_of(name)
    with command.make_context(name, list(rest)) as context:
        given = {k: v for k, v in context.params.items() if v not in (None, [], ())}
    of_the_command = {"sweep", "jobs", "dry_run"} if name in CONFIGS else set()
    given = {k: v for k, v in given.items() if k not in of_the_command}
    config = given.pop("config_file", None)
    if name in CONFIGS and (config is None or Path(config).exists()):
        settings = read(CONFIGS[name], config, given).model_dump()
        for spec in (*(settings.get("explainer") or ()), *(settings.get("eval_explainer") or ())):
            parse_explainer(spec)
        for spec in settings.get("objective") or []:
            parse_objective(spec)
    return given


def fewer(words):
    """A command line with few steps and images."""
    name, *rest = words
    if name in CONFIGS:
        known = {f"--{field.replace('_', '-')}" for field in CONFIGS[name].model_fields}
        few = {option: FEW[option] for option in FEW.keys() & known}
        kept, rest = [name], iter(rest)
        for word in rest:
            if word in few:
                next(rest)
            else:
                kept.append(word)
        for option, value in few.items():
            kept += [option, value]
        kept += ["--device", "cpu"]
    else:
        kept = words
    if name != "reproduce":
        return kept
    one = [] if {"--cells", "figures"} & {*kept} else ["--cells", "location-grad-cam-vgg19"]
    return [*kept, *one, "--dry-run"]


def run_python(block, names):
    text = re.sub(r"steps=\d+|\"steps\": \d+", lambda m: re.sub(r"\d+", "2", m[0]), block.text)
    text = re.sub(r"limit=\d+", "limit=16", text)
    text = re.sub(r"(Shapes\(\"\w+\", )(\d{3,})", r"\g<1>16", text)
    exec(compile(text, "block", "exec"), names)


@pytest.fixture
def few_in_the_demo(monkeypatch):
    def config(**given):
        return FoolJob(**{**given, "steps": 2, "limit": 16, "eval_limit": 16})

    monkeypatch.setattr(trompe.cli.fool, "FoolJob", config)


@pytest.mark.usefixtures("few_in_the_demo")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page, tmp_path, monkeypatch, trompe):
    """In order, in one directory and one namespace for a page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RULES, "nan_to_num", None)
    names = {"__name__": "page"}
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        if block.language == "python":
            ast.parse(block.text)
            if not block.title and not block.needs:
                run_python(block, names)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text)
        elif block.language == "sh":
            for words in commands(block):
                check(words, trompe, run=not block.needs)
        else:
            assert block.language in ("text",), f"a block without a language in {page}: {block}"


def messages():
    """The templates of all errors in src, with ... in place of what differs."""

    def text(node):
        match node:
            case ast.Constant(value=str(words)):
                return words
            case ast.JoinedStr(values=parts):
                return "".join(text(part) for part in parts)
            case ast.BinOp(left=left, right=right):
                return text(left) + text(right)
        return "..."

    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="TrompeError"), args=[message, *_]):
                    yield text(message)


def test_troubleshooting_has_our_messages_word_for_word():
    page = (ROOT / "docs/how-to/troubleshooting.md").read_text()
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    assert len(headings) > 40
    known = {*messages()}
    for heading in headings:
        assert heading in known, f"{heading}\nis now: {get_close_matches(heading, known, 1, 0.4)}"
    for entry in page.split("\n### ")[1:]:
        assert re.search(r"\*\*Cause\.\*\*.*\*\*Remedy\.\*\*", entry, re.DOTALL), entry


def test_tables_of_results_are_those_of_the_rows():
    pages = tables.pages()
    assert len(pages) > 5
    for path, text in pages.items():
        assert path.read_text() == text, f"run `make results`: {path} is not what its rows say"


def test_every_result_has_a_source():
    rows = tables.read("sources.csv")
    committed = [*tables.HERE.rglob("*.csv"), *(ROOT / "docs/benchmarks").glob("*.csv")]
    known = {(tables.HERE / file).resolve() for file in rows["file"]}
    without = {path for path in committed if path.name != "sources.csv"} ^ known
    assert not without, f"sources.csv has no row, or there is no file: {without}"
    assert rows["commit"].str.fullmatch("[0-9a-f]{7,40}").all()
    assert (rows["command"] + rows["settings"] != "").all()


def check(words, trompe, *, run):
    program = words[0]
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        if run and words == ["make", "demo"]:
            assert trompe("demo")[0] == 0
    elif program == "torchrun":
        parsed(words[words.index("trompe") + 1 :])
    elif program == "trompe":
        parsed(words[1:])
        if run:
            code, _, err = trompe(*fewer(words[1:]))
            assert code == 0, err
    elif program == "python":
        file = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
        compile((ROOT / file).read_text(), file, "exec")
    else:
        assert words in ([".", ".venv/bin/activate"], ["tensorboard", "--logdir", "runs"])
