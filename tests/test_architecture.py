"""The floors of the house: imports go down only, and never in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import trompe

SOURCE = Path(trompe.__file__).parent
# From the bottom to the top; those on one line do not know each other.
FLOORS = (
    ("errors",),
    ("base",),
    ("colour", "maps", "metrics"),
    ("notebook",),
    ("runs",),
    ("data",),
    ("models",),
    ("explainers",),
    ("objectives",),
    ("evaluation",),
    ("tuning",),
    ("audit",),
    ("repair",),
    ("experiments",),
    ("report",),
    ("explain", "catalogue", "doctor"),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}


def modules(root):
    """Module name to file, of a package."""
    for path in root.rglob("*.py"):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path, known):
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in inner if name in known]
            yield from found
            if len(found) < len(inner) and node.module in known:
                yield node.module


def graph(root):
    known = dict(modules(root))
    return {name: set(imports(path, known)) - {name} for name, path in known.items()}


def upward(root):
    """Imports that go up: (module, what it imports)."""

    def level(module):
        return LEVEL[[*module.split("."), "__init__"][1]]

    return [
        (module, other)
        for module, others in graph(root).items()
        for other in others
        if level(other) > level(module)
        or (level(other) == level(module) and other.split(".")[1] != module.split(".")[1])
    ]


def circle(root):
    """The modules of a circle of imports, if there is one."""
    try:
        TopologicalSorter(graph(root)).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_every_module_has_its_floor():
    assert {path.stem if path.is_file() else path.name for path in SOURCE.iterdir()} - {
        "py",
        "__pycache__",
    } == LEVEL.keys()


def test_imports_go_down():
    assert upward(SOURCE) == []


def test_there_is_no_circle():
    assert circle(SOURCE) is None


@pytest.fixture
def house(tmp_path):
    """A small one, and what builds it."""

    def build(**files):
        root = tmp_path / "trompe"
        for name, text in {"errors": "", "__init__": "", **files}.items():
            path = root / f"{name.replace('__of__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return build


def test_an_upward_import_is_noticed(house):
    lazy = "def f():\n    from trompe import repair"
    root = house(maps="import trompe.errors", metrics=lazy, repair="from trompe.maps import x")
    assert upward(root) == [("trompe.metrics", "trompe.repair")]


def test_neighbours_do_not_know_each_other(house):
    root = house(maps="", metrics="import trompe.maps")
    assert upward(root) == [("trompe.metrics", "trompe.maps")]


def test_a_circle_is_noticed(house):
    root = house(base__of__a="from trompe.base import b", base__of__b="import trompe.base.a")
    assert set(circle(root)) == {"trompe.base.a", "trompe.base.b"}
