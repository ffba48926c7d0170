"""The folders show the architecture: imports go one way, faces, names, sizes, tests that mirror."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ahn
from ahn.hf.families import FAMILIES

PACKAGE = Path(ahn.__file__).parent
LAYERS = [  # a part imports itself and the parts of earlier lines
    {"config", "startup", "versions"},
    {"shapes"},
    {"io"},
    {"plots", "cost", "facts"},
    {"ops"},
    {"memory"},
    {"layer"},
    {"hf"},
    {"runtime"},
    {"modeling"},
    {"checkpoint", "generation"},
    {"session"},
    {"serving"},
    {"training", "evaluation"},
    {"bench"},
    {"planning"},
    {"embedded"},
    {"__init__"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

TESTS = Path(__file__).parent
# Rooms of tests that are no rooms of the package: on a GPU, the steps of CONTRIBUTING.md, other
# projects' tests, and every class of transformers.
OTHER_TESTS = {"gpu", "contributing", "peers", "every_model"}
MOST_LINES, MOST_KERNEL_LINES = 250, 400  # of a file
MEDIAN, PERCENTILE_90, MOST = 10, 40, 60  # lines of a function without signature and docstring


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of every import in a file, those within functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: expected an absolute import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def own_part(name: str) -> str | None:
    """The part of this package that a dotted name lies in; None for other packages."""
    first, *rest = name.split(".")
    if first != "ahn":
        return None
    is_part = rest and ((PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").is_file())
    return rest[0] if is_part else "__init__"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    part = part_of(path)
    assert part in RANK, f"{part}: give it a line in LAYERS"
    for line, name in imported(path):
        other = own_part(name)
        if other in (None, part):
            continue
        assert RANK[other] < RANK[part], f"{path}:{line}: {part} imports {other}"


def test_ops_know_neither_modules_nor_transformers():
    for path in (PACKAGE / "ops").rglob("*.py"):
        names = [name for _, name in imported(path)]
        assert not [n for n in names if n.startswith("transformers")], path
        assert "nn.Module" not in path.read_text(), path


def faces():
    return sorted(PACKAGE.rglob("__init__.py"))


@pytest.mark.parametrize("path", faces(), ids=lambda path: str(path.parent.relative_to(PACKAGE)))
def test_a_face_holds_names_and_no_implementation(path):
    allowed = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.AnnAssign, ast.If)
    nodes = ast.parse(path.read_text()).body
    lazy = {"__getattr__", "__dir__"}  # of the package itself, whose names are imported when asked
    extra = [x for x in nodes if not isinstance(x, allowed)]
    names = {getattr(x, "name", type(x).__name__) for x in extra}
    assert not names or (path.parent == PACKAGE and names <= lazy), f"{path}: {names}"


@pytest.mark.parametrize("path", faces(), ids=lambda path: str(path.parent.relative_to(PACKAGE)))
def test_no_module_bears_the_name_of_what_its_package_exports(path):
    """Such a module could not be reached as an attribute of its package."""
    package = importlib.import_module(".".join(("ahn", *path.parent.relative_to(PACKAGE).parts)))
    inside = {x.stem for x in path.parent.iterdir() if x.suffix == ".py" or x.is_dir()}
    for name in inside & set(getattr(package, "__all__", ())):
        assert inspect.ismodule(getattr(package, name)), f"{package.__name__}.{name}"


def test_tests_mirror_the_tree():
    rooms = {x.name for x in PACKAGE.iterdir() if x.is_dir()}
    folders = {x.name for x in TESTS.iterdir() if x.is_dir() and not x.name.startswith("__")}
    assert folders - OTHER_TESTS <= rooms, folders - OTHER_TESTS - rooms
    assert rooms - folders - {"__pycache__"} == set(), "rooms without a folder of tests"


def test_files_of_tests_have_names_of_their_own():
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest imports them by their names alone"


def is_kernel(path: Path) -> bool:
    return "triton" in str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_page_or_two(path):
    most = MOST_KERNEL_LINES if is_kernel(path) else MOST_LINES
    assert len(path.read_text().splitlines()) <= most


def test_functions_are_short():
    sizes = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                size = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert size <= MOST, f"{path}: {node.name} {size}"
                sizes.append(size)
    sizes.sort()
    assert sizes[len(sizes) // 2] <= MEDIAN
    assert sizes[int(len(sizes) * 0.9)] <= PERCENTILE_90


PROBE = """
import json, sys
sys.path[:0] = {path!r}
import safetensors.torch, torch, transformers
from transformers import AutoModelForCausalLM, LogitsProcessorList, PreTrainedModel
{models}
before = set(sys.modules)
import ahn
print(json.dumps(sorted({{name.split(".")[0] for name in set(sys.modules) - before}})))
"""


@pytest.mark.slow
def test_importing_the_package_needs_only_its_three_dependencies():
    models = "\n".join(f"import transformers.models.{f}.modeling_{f}" for f in FAMILIES)
    code = PROBE.format(path=sys.path, models=models)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    added = set(json.loads(result.stdout.splitlines()[-1])) - set(sys.stdlib_module_names)
    assert added <= {"ahn", "torch", "transformers", "safetensors"}
