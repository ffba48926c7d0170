"""The README and the other documents: their names resolve, their examples print what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import call

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{x.name}" for x in ROOT.glob("docs/*.md")),
]
NAME = re.compile(r"\bahn(?:\.[A-Za-z_]\w*)+")
NO_NAMES = (
    "ahn.memories",
    "ahn.losses",
    "ahn.fn",
)  # entry point groups, and a released tensor name
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.M)
RESOLVE = """
import ahn, importlib, json, sys
for name in json.load(sys.stdin):
    try:
        eval(name)
    except AttributeError:
        print(name)
"""


def unresolved(names):
    """Those of the dotted names that `import ahn` alone does not give."""
    result = subprocess.run(
        [sys.executable, "-c", RESOLVE],
        input=json.dumps(sorted(names)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return result.stdout.split()


def dotted_names(text):
    """Names of the package in a document's prose, code and commands; no file names."""
    return {name for name in NAME.findall(text) if not name.startswith(NO_NAMES)}


def test_every_name_of_the_readme_is_there_after_import_ahn():
    names = dotted_names(README)
    assert {"ahn.embedded.load", "ahn.generation.stream", "ahn.training.distill"} <= names
    assert unresolved(names) == []


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    import importlib

    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("path", DOCUMENTS)
def test_every_name_of_the_documents_exists(path):
    names = dotted_names((ROOT / path).read_text())
    assert [name for name in sorted(names) if not importable(name)] == []


def test_every_new_name_of_the_changelog_exists():
    table = (ROOT / "CHANGELOG.md").read_text().split("| 0.1.0 | now |")[1].split("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines()[2:]]
    old, new = ({x for row in rows for x in dotted_names(row[i])} for i in (1, 2))
    assert len(new) > 30
    assert [name for name in sorted(new) if not importable(name)] == []
    modules = ("ahn.checkpoint.merge", "ahn.checkpoint.split", "ahn.generation.stream")
    assert [name for name in sorted(old.difference(modules)) if importable(name)] == []


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(README) if kind == language]


def answers() -> list[str]:
    """What the examples print, in the README's order."""
    return blocks("")


def test_the_first_python_example_prints_what_it_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(blocks("python")[0], {})
    assert capsys.readouterr().out == answers()[0]


def test_the_other_python_examples_can_be_read_and_need_the_hub():
    for text in blocks("python")[1:]:
        compile(text, "README.md", "exec")
        assert "Qwen/" in text


def test_the_first_command_prints_what_it_says():
    (line,) = re.findall(r"^\(cat LICENSE; printf '(.*)'\) \| ahn (.*)$", README, re.M)
    prompt = (ROOT / "LICENSE").read_text() + line[0].replace(r"\n", "\n")
    result = call(*line[1].split(), input=prompt)
    assert result.exit_code == 0, result.output
    assert result.stdout == answers()[1]


@pytest.mark.parametrize("path", DOCUMENTS)
def test_every_command_of_the_documents_exists(path):
    known = set(re.findall(r"^  (\w+) ", call("--help").stdout.split("Commands:")[1], re.M))
    text = (ROOT / path).read_text()
    commands = set(re.findall(r"(?:^|`|\| |-m )ahn ([a-z]+)\b", text, re.M))
    assert commands <= known, commands - known


def test_continuous_integration_finds_its_commands():
    lines = "\n".join(blocks("bash")).splitlines()
    for command in ("pip install", "pytest", "ahn demo"):
        assert any(line.startswith(command) for line in lines)
    for path in re.findall(r"tests/[\w/]+\.py", (ROOT / ".ci" / "run").read_text()):
        assert (ROOT / path).is_file(), path
