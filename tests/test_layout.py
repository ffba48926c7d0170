"""Imports go one way, and `import ahn` needs only torch, transformers and safetensors."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ahn
from ahn.hf.families import FAMILIES

PACKAGE = Path(ahn.__file__).parent
LAYERS = [  # a part imports itself and the parts of earlier lines
    {"config"},
    {"io"},
    {"plots", "cost"},
    {"ops"},
    {"memory"},
    {"layer"},
    {"hf"},
    {"runtime"},
    {"modeling"},
    {"checkpoint", "generation"},
    {"training", "evaluation"},
    {"bench"},
    {"embedded"},
    {"__init__"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


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


def test_importing_the_package_needs_only_its_three_dependencies():
    models = "\n".join(f"import transformers.models.{f}.modeling_{f}" for f in FAMILIES)
    code = PROBE.format(path=sys.path, models=models)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    added = set(json.loads(result.stdout.splitlines()[-1])) - set(sys.stdlib_module_names)
    assert added <= {"ahn", "torch", "transformers", "safetensors"}
