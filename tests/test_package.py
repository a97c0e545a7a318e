"""The package: its version, names, needs and examples, and how results show themselves."""

import ast
import doctest
import importlib
import inspect
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from textwrap import dedent

import pandas as pd
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trompe
from tests.runs import make_run
from tests.test_architecture import modules
from trompe import (
    AuditReport,
    Evaluation,
    FoolResult,
    RepairResult,
    Shapes,
    TrainResult,
    load_model,
    over_seeds,
)
from trompe.audit.exhibits import Exhibit, Tile
from trompe.audit.verdict import Verdict

ROOT = Path(__file__).parent.parent
SOURCE = Path(trompe.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXAMPLES = [name for name, path in modules(SOURCE) if ">>> " in path.read_text()]
# The modules that need an extra; others import them only when they are asked for.
EXTRA = {
    "trompe.explainers.foreign.captum": "captum",
    "trompe.explainers.foreign.grad_cam": "pytorch_grad_cam",
    "trompe.models.from_transformers": "transformers",
    "trompe.experiments.runner": "ray",
}


def test_there_is_one_version(trompe):
    said = PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == said
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == said
    code, out, _ = trompe("--version")
    assert code == 0
    assert out.strip() == sys.modules["trompe"].__version__


def test_a_function_is_no_module_whatever_was_imported_before():
    for name in ("audit", "explain", "repair"):
        importlib.import_module(f"trompe.{name}")
    for name in trompe.__all__:
        found = getattr(trompe, name)
        assert not inspect.ismodule(found), name
        assert inspect.getdoc(found), name


def imported(tree):
    """The top-level names of what is imported, and whether that is when the module is."""
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], id(node) in at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], id(node) in at_once


def test_the_base_install_is_enough():
    base = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    distributions = packages_distributions()
    inner = set(EXTRA) - {"trompe.experiments.runner"}
    for module, path in modules(SOURCE):
        tree = ast.parse(path.read_text())
        for name, at_once in imported(tree):
            if name in sys.stdlib_module_names or name in ("trompe", "__future__"):
                continue
            if name == EXTRA.get(module):
                assert not at_once or module in inner, (module, name)
                continue
            needed = {canonicalize_name(one) for one in distributions[name]}
            assert needed & base, f"{module} imports {name}, which is no dependency"
        if module not in inner:
            named = {
                f"{node.module}.{alias.name}"
                for node in tree.body
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            assert not named & inner, module


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return Evaluation.load(make_run(tmp_path_factory.mktemp("runs") / "run") / "evaluation")


def report(images):
    """What an audit by two families of explainers found."""
    question = {"section": "alone", "kind": "noise", "question": "Does it stay?", "score": 0.5}
    question |= {"normal_low": 0.1, "normal_high": 0.4, "weighed": 2.0}
    evidence = [question | {"family": family} for family in ("grad-cam", "lrp-t") * 9]
    tiles = [Tile(family, "", torch.rand(8, 8), []) for family in ("grad-cam", "lrp-t")]
    exhibits = [Exhibit(i, image, tiles, []) for i, image in enumerate(images)]
    verdict = Verdict(3.0, 1.0, True, 0.05, 0.8, {"noise": 3.0})
    tables = (pd.DataFrame(evidence), pd.DataFrame(), None, pd.DataFrame())
    return AuditReport({"alone": verdict}, *tables, (0.0, 1.0), {}, 12, exhibits, [])


@pytest.fixture(scope="module")
def results(evaluation):
    """One of each kind of result."""
    loaded = load_model("embedded")
    history = pd.DataFrame({"step": range(1000)})
    stages = pd.DataFrame({"stage": ["suspect", "9 steps"], "alarm": [True, False]})
    data = Shapes("validation", 12)
    images = torch.stack([data[i][0] for i in range(12)])
    return {
        "FoolResult": FoolResult(loaded.model, None, history, None, evaluation, None, None, {}),
        "TrainResult": TrainResult(loaded.model, history, (0.9, 0.8, 0.95), Path("runs/base")),
        "Evaluation": evaluation,
        "OverSeeds": over_seeds([evaluation, evaluation]),
        "RepairResult": RepairResult(loaded.model, stages, "9 steps", True),
        "LoadedModel": loaded,
        "Explanations": trompe.explain(loaded.model, images, ["grad-cam", "lrp"]),
        "AuditReport": report(images),
    }


def test_results_are_short(results):
    for name, result in results.items():
        assert len(repr(result)) < 1000, name
        assert len(repr(result).splitlines()) < 12, name
    assert "EmbeddedNet" in repr(results["FoolResult"])
    assert "90.0 % (80.0 % to 95.0 %)" in repr(results["TrainResult"])
    assert "raises no alarm" in repr(results["RepairResult"])
    row = results["Evaluation"].explanations.query("model == 'manipulated' and attacked").iloc[0]
    assert f"{100 * row['fsr']:.1f} % fooled" in repr(results["Evaluation"])


def test_a_notebook_shows_pictures_and_tables(results):
    pictures = {"FoolResult", "Evaluation", "Explanations", "AuditReport"}
    for name in {*pictures, "OverSeeds", "RepairResult"}:
        page = results[name]._repr_html_()
        assert len(page) < 100_000, name
        assert page.count("<table>") == page.count("</table>") > 0
        assert ("data:image/jpeg;base64," in page) == (name in pictures), name


def test_names_can_not_write_html(tmp_path):
    attack = "<script>alert(1)</script>"
    run = make_run(tmp_path / "run", explainers=[attack, "lrp"])
    page = Evaluation.load(run / "evaluation")._repr_html_()
    assert attack not in page
    assert "&lt;script&gt;" in page


def test_names_that_share_a_description_have_their_own_types():
    griffe = pytest.importorskip("griffe")
    code = """
        class Found:
            '''What.

            Attributes
            ----------
            first, second
                Both.
            '''
            first: int
            second: str | None

        def find(first: int, second: str = "b", third=None):
            '''Do.

            Parameters
            ----------
            first, second
                Both.
            third
                Alone.
            '''
    """
    extensions = griffe.load_extensions(str(ROOT / "docs" / "grouped.py"))
    files = {"__init__.py": dedent(code)}
    settings = {"docstring_parser": "numpy", "extensions": extensions}
    with griffe.temporary_pypackage("found", files) as made:
        package = griffe.load("found", search_paths=[made.tmpdir], **settings)
    for name, types in (
        ("Found", ["int", "str | None"]),
        ("find", ["int", "str", "None"]),
    ):
        _, section = package[name].docstring.parsed
        assert [str(one.annotation) for one in section.value] == types
        assert [one.description for one in section.value][:2] == ["Both.", "Both."]
