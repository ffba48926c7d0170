"""Every command and Python block of the documents is run, or read where it cannot be run here."""

from __future__ import annotations

import ast
import subprocess
import textwrap
from importlib import import_module
from importlib.util import find_spec

import pytest

from ahn.training.losses import registry
from command_lines import check, commands_of, lines_of
from commands import call
from documents import DOCUMENTS, MARK, REASONS, ROOT, blocks, blocks_of

SHELL, PYTHON = blocks("bash"), blocks("python")
ELSEWHERE = "CONTRIBUTING.md"  # whose Python stands in the tests that it names


def over(found):
    return pytest.mark.parametrize("block", found, ids=str)


def over_run(found):
    """Over those that can be run; outside of the README they are slow."""
    marks = {True: (), False: pytest.mark.slow}
    can = [pytest.param(x, marks=marks[x.document == "README.md"]) for x in found if x.can_run]
    return over(can)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that looks like a clone, with a book; it is the current one."""
    for name in ("LICENSE", "README.md", "constraints.txt", "recipes", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "book.txt").write_text((ROOT / "LICENSE").read_text()[:6000])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_marks_stand_before_blocks_and_give_known_reasons(document):
    reasons = [x.reason for x in blocks_of(document) if x.reason is not None]
    assert reasons == MARK.findall((ROOT / document).read_text())
    assert set(reasons) <= set(REASONS)


def test_most_blocks_are_run():
    ours = [x for x in PYTHON if x.document != ELSEWHERE]
    assert len(SHELL) > 15 and len(ours) > 8
    assert sum(x.reason is None for x in ours) > len(ours) / 2


@over(SHELL)
def test_commands_know_their_options(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [words for line in lines_of(block.text) for words in commands_of(line)]
    assert found
    for words in found:
        check(words)


@over(PYTHON)
def test_python_can_be_compiled_and_its_imports_are_there(block):
    text = textwrap.dedent(block.text)  # a method alone
    compile(text, str(block), "exec")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            if block.reason == "needs vLLM" and not find_spec("vllm"):
                continue
            assert name is None or hasattr(import_module(module), name), (module, name)


@over_run(SHELL)
def test_commands_do_what_they_say(block, folder):
    said = "".join(_said(line) for line in lines_of(block.text))
    assert block.output is None or said == block.output


def _said(line):
    """What a line prints; the package's command that ends it runs in this process.

    Answers of SmolLM2 are cut short: a processor takes seconds for each.
    """
    before, pipe, last = line.rpartition(" | ")
    words = commands_of(last)[-1]
    if words[0] != "ahn":
        return _printed(line)
    short = ["--max-new-tokens", 8] if "smollm2" in words and "ask" in words else []
    result = call(*words[1:], *short, input=_printed(before) if pipe else None)
    assert result.exit_code == 0, (line, result.stderr, result.exception)
    return result.stdout


def _printed(line):
    shell = ["bash", "-c", line]
    return subprocess.run(shell, check=True, capture_output=True, text=True).stdout


@over_run([x for x in PYTHON if x.document != ELSEWHERE])
def test_python_does_what_it_says(block, folder, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))  # other tests know no new one
    exec(compile(block.text, str(block), "exec"), {})
    assert block.output is None or capsys.readouterr().out == block.output
