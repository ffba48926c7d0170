"""Lines of a shell: which commands they hold, and whether these know their words."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from unittest import mock

import pytest
import typer

from ahn.cli import app
from ahn.cli.train import parse as parse_train
from ahn.training.arguments import RunArguments
from documents import ROOT

tomllib = pytest.importorskip("tomllib")  # of Python 3.11
SEPARATORS = set("();|&")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
Check = Callable[[list[str]], None]  # of the words after the program; fails where one is wrong


def lines_of(text: str) -> list[str]:
    """The lines of a block, continued ones as one."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def commands_of(line: str) -> list[list[str]]:
    """The words of each simple command of a line; a variable is 0, a number and an address."""
    lexer = shlex.shlex(re.sub(r"\$[A-Z]+", "0", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= SEPARATORS:
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def check(words: Sequence[str]) -> None:
    """Fail where a program is unknown here, or does not know its words."""
    program, *rest = [x for x in words if not re.match(r"[A-Z_]+=", x)]
    assert program in PROGRAMS, f"{program}: give it a line in PROGRAMS"
    PROGRAMS[program](rest)


def check_ahn(words: list[str]) -> None:
    if words[0] == "train":
        # Whether this machine has the GPUs and packages that they ask for does not matter.
        with mock.patch.object(RunArguments, "__post_init__", lambda self: None):
            parse_train(words[1:])
        return
    command, name, context = typer.main.get_command(app), "ahn", None
    while hasattr(command, "commands"):  # a group: the first word names one of its commands
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
        assert words and words[0] in command.commands, (name, words[:1])
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words, parent=context)


def check_python(words: list[str]) -> None:
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file(), words[0]
    elif words[1] == "ahn":
        check_ahn(words[2:])
    elif words[1] == "ahn.evaluation":
        check_lm_eval(words[2:])
    else:
        import_module(words[1])


def check_lm_eval(words: list[str]) -> None:
    from lm_eval._cli import HarnessCLI

    with mock.patch.object(sys, "argv", ["lm_eval", *words]):
        HarnessCLI().parse_args()


def check_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    _check_started(get_args_parser().parse_args(words))


def check_accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    arguments = launch_command_parser().parse_args(words[1:])
    assert arguments.config_file is None or (ROOT / arguments.config_file).is_file()
    _check_started(arguments)


def _check_started(arguments: object) -> None:
    """What a launcher starts in each of its processes."""
    assert arguments.module
    check_python(["-m", arguments.training_script, *arguments.training_script_args])


def check_pip(words: list[str]) -> None:
    """Extras are those of the project, and files of constraints are there."""
    assert words[0] == "install"
    for word, after in zip(words, [*words[1:], ""]):
        if found := re.fullmatch(r"(?:ahn|\.)\[(.+)\]", word):
            assert set(found[1].split(",")) <= set(PROJECT["optional-dependencies"]), word
        if word == "-c":
            assert (ROOT / after).is_file(), after


def check_files(words: list[str]) -> None:
    """The words that look like places in the repository are such."""
    for word in words:
        if "/" in word:
            assert list(ROOT.glob(word)), word


def anything(words: list[str]) -> None:
    """A program that is not ours to check."""


PROGRAMS: dict[str, Check] = {
    "ahn": check_ahn,
    "python": check_python,
    "torchrun": check_torchrun,
    "accelerate": check_accelerate,
    "pip": check_pip,
    "pytest": check_files,
    **dict.fromkeys(("cat", "cd", "git", "mypy", "printf", "ruff", "vllm", "curl"), anything),
}
