"""CONTRIBUTING.md says what the tests it names do: its code stands in them, its files exist."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (Add an? .*?)\n(.*?)(?=^## |\Z)", DOCUMENT, re.DOTALL | re.M))
BLOCK = re.compile(r"^( *)```(python|yaml)\n(.*?)^ *```$", re.DOTALL | re.M)
over_sections = pytest.mark.parametrize("name", SECTIONS)


def shown_by(section: str) -> Path:
    """The test that carries the steps out: the first file that the section links to."""
    return ROOT / re.search(r"Shown by\s+\[[^]]*\]\(([^)]*)\)", section).group(1)


def blocks(section: str) -> list[tuple[str, str]]:
    """Language and text of the blocks of code, without the indentation of their step."""
    return [
        (language, re.sub(rf"^{indent}", "", text, flags=re.M))
        for indent, language, text in BLOCK.findall(section)
    ]


def imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_there_is_a_section_for_each_kind_of_addition():
    kinds = "cell", "exact rows", "family", "loss", "task", "backend", "serving engine"
    assert len(SECTIONS) == len(kinds)
    for kind, name in zip(kinds, SECTIONS):
        assert kind in name


@over_sections
def test_its_steps_are_numbered(name):
    numbers = [int(x) for x in re.findall(r"^(\d+)\. ", SECTIONS[name], re.M)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 3


@over_sections
def test_its_code_stands_in_the_test_that_it_names(name):
    source = shown_by(SECTIONS[name]).read_text()
    code = blocks(SECTIONS[name])
    assert code
    for language, text in code:
        if text.rstrip() in source:
            continue
        head, body = "", text
        if language == "python" and text.startswith(("import ", "from ")):
            head, body = text.split("\n\n\n", 1)
        assert body.rstrip() in source, body
        assert imports(ast.parse(head)) <= imports(ast.parse(source))


@over_sections
def test_its_python_can_be_read(name):
    for language, text in blocks(SECTIONS[name]):
        if language == "python":
            ast.parse(textwrap.dedent(text))


@pytest.mark.parametrize("path", ["CONTRIBUTING.md", "docs/architecture.md", "README.md"])
def test_every_file_it_links_to_exists(path):
    text = (ROOT / path).read_text()
    for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (ROOT / path).parent.joinpath(link).exists(), link
    for name in re.findall(r"`((?:src|tests|docs|benchmarks|recipes)/[\w./-]+)`", text):
        if "first_word" not in name and "linear_attention" not in name:
            assert (ROOT / name).exists(), name
