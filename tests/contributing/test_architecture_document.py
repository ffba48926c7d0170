"""docs/architecture.md: its rooms, modes and backends are those of the package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from ahn import ops
from ahn.layer.modes import MODES
from ahn.ops import backends
from ahn.runtime.decode_step import STEPS

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()
SCRIPT = ROOT / "docs" / "figures" / "token_path.py"


def table(heading: str, first_column: str) -> list[list[str]]:
    """Cells of the rows of a table below a heading, found by the name of its first column."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", DOCUMENT, re.DOTALL | re.M).group(1)
    lines = section[section.index(f"| {first_column} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_rooms_are_those_of_the_layout_in_their_order():
    tree = ast.parse((ROOT / "tests" / "test_layout.py").read_text())
    (layers,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "LAYERS"
    )
    rooms = [set(named(row[0])) for row in table("Folders", "room")]
    assert rooms == ast.literal_eval(layers)


def test_backends_are_those_of_the_table():
    for path in Path(ops.__file__).parent.glob("*/api.py"):
        import_module(f"ahn.ops.{path.parent.name}.api")
    registered = {}
    for row in backends.registered_backends():
        registered.setdefault(row.op, []).append(row.name)
    rows = table("Who computes what", "op")
    assert {op: named(row[1]) for row in rows for op in named(row[0])} == registered


def test_choices_and_modes_are_those_there_are():
    kernels, steps, _ = (named(row[2]) for row in table("Who computes what", "choice"))
    assert set(kernels) == set(backends.KERNELS) and set(steps) == set(STEPS)
    (modes,) = (row[0] for row in table("Where things live", "what") if "the mode" in row[0])
    assert set(named(modes)) == set(MODES)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_figure_is_what_its_script_draws(tmp_path, ending):
    """The text of it: fonts, and so outlines, differ from machine to machine."""
    subprocess.run([sys.executable, SCRIPT, "--out", tmp_path], check=True)
    drawn, committed = (path / f"token_path.{ending}" for path in (tmp_path, SCRIPT.parent))
    assert committed.is_file() and drawn.stat().st_size > 1000
    if ending == "svg":
        words = [re.findall(r"<text[^>]*>([^<]*)<", x.read_text()) for x in (drawn, committed)]
        assert words[0] == words[1] and "softmax over" in words[0]
