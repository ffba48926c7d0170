"""`ahn train`: arguments from the command line, YAML or JSON; everything else in ahn.training."""

from __future__ import annotations

import json
import sys
from argparse import RawDescriptionHelpFormatter
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import typer

from ahn.cli.errors import did_you_mean
from ahn.cli.output import check_folder, print_json
from ahn.io.text import read_text

JSON = "--json"
EXAMPLES = """examples:
  ahn train recipes/debug.yaml
  ahn train recipes/qwen2.5-3b.yaml --report_to tensorboard
  ahn train --model_name_or_path embedded --dataset notes.txt --max_steps 100 --output_dir out"""
DESCRIPTION = """Train a memory for a base by distilling the base's own full attention.

A YAML or JSON file may hold the options; the command line wins over it. Every one of
transformers' TrainingArguments works. --json leaves one line of JSON alone on the output."""
SETTINGS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
    "token_normalize_func": None,
}


def train(context: typer.Context) -> None:
    """Train a memory for a base by distilling the base's own full attention.

    ahn train [FILE.yaml | FILE.json] [--name value ...]: the options of `ahn train --help` and
    every one of transformers' TrainingArguments; the command line wins over the file. --json
    leaves one line of JSON alone on the output.
    """
    as_json = JSON in context.args
    arguments = parse([word for word in context.args if word != JSON])
    check_folder("output_dir", Path(arguments[-1].output_dir or "."))
    from ahn.training.process_group import leave_group
    from ahn.training.run import run
    from ahn.training.stop import SIGTERM_CODE

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        outcome = run(*arguments)
        if arguments[-1].process_index == 0:
            print(_said(arguments[-1].output_dir, outcome.stopped))
    if arguments[-1].process_index == 0:
        print_json(outcome.metrics, as_json)
    leave_group()
    if outcome.stopped:
        sys.exit(SIGTERM_CODE)


def _said(folder: str | None, stopped: bool) -> str:
    if stopped:
        return f"SIGTERM: {folder} has a checkpoint; --resume_from_checkpoint last goes on."
    return f"{folder} holds the memory."


def parse(words: list[str]) -> Any:
    """The four groups of arguments; raises ValueError, in one line, for what is wrong."""
    try:
        from transformers import HfArgumentParser

        from ahn.training.arguments import DistillArguments, ModelArguments, RunArguments
        from ahn.training.data import DataArguments
        from ahn.training.original_arguments import OriginalArguments
    except ImportError as error:
        raise ValueError(f"train: expected pip install ahn[train], got: {error}") from error

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(f"command line: expected options of --help, got: {message}")

    groups: Any = (
        ModelArguments, DataArguments, DistillArguments, RunArguments, OriginalArguments
    )  # fmt: skip
    parser = Parser(
        groups,
        prog="ahn train",
        usage="ahn train [FILE.yaml | FILE.json] [--name value ...]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for action in parser._actions:
        if any(x.startswith("--no_") for x in action.option_strings):
            action.help = f"Turns {action.dest} off."  # else the words of what it turns off
    if words and Path(words[0]).suffix in (".yaml", ".yml", ".json"):
        words = [*_words(_read(Path(words[0]))), *words[1:]]
    *parsed, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if unknown:
        meant = did_you_mean(unknown[0], parser._option_string_actions)
        raise ValueError(f"command line: expected options of --help, got {unknown[0]}{meant}")
    return tuple(parsed[: len(groups) - 1])


def _read(path: Path) -> dict[str, Any]:
    """The object in a YAML or JSON file (JSON is YAML)."""
    import yaml

    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML or JSON, got: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected names and values, got {type(values).__name__}")
    return values


def _words(values: dict[str, Any]) -> list[str]:
    """What one would type for these values."""
    words = []
    for name, value in values.items():
        if value is None:
            continue
        words.append(f"--{name}")
        many = value if isinstance(value, list) else [value]
        words += [json.dumps(x) if isinstance(x, dict) else str(x) for x in many]
    return words
