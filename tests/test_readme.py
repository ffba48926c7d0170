"""The README and the other documents: the names and commands that they mention exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import typer

from ahn.cli import app
from commands import call
from documents import DOCUMENTS, ROOT, blocks_of

README = (ROOT / "README.md").read_text()
NAME = re.compile(r"\bahn(?:\.[A-Za-z_]\w*)+")
NO_NAMES = (
    "ahn.memories",
    "ahn.losses",
    "ahn.fn",
)  # entry point groups, and a released tensor name
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


@pytest.mark.slow
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


@pytest.mark.parametrize("path", DOCUMENTS)
def test_every_command_and_option_of_the_prose_exists(path):
    text = (ROOT / path).read_text()
    for words in re.findall(r"`ahn ([a-z][^`]*)`", text):
        name, *rest = words.split()
        known = options_of(name, rest[:1])
        assert set(re.findall(r"--[\w-]+", words)) <= known, words


def options_of(name, rest):
    """The options of a command, and of its own commands where one of them comes next."""
    group = typer.main.get_command(app)
    command = group.commands[name]
    if rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]
    if name == "train":
        return set(re.findall(r"--[\w-]+", call("train", "--help").stdout))
    return {option for each in command.params for option in (*each.opts, *each.secondary_opts)}


def test_continuous_integration_finds_its_commands():
    lines = [line for block in blocks_of("README.md") for line in block.text.splitlines()]
    for command in ("pip install", "pytest", "ahn demo"):
        assert any(line.startswith(command) for line in lines)
    for path in re.findall(r"tests/[\w/]+\.py", (ROOT / ".ci" / "run").read_text()):
        assert (ROOT / path).is_file(), path
