"""`ahn train`: arguments from the command line, YAML or JSON; everything else in ahn.training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer

SETTINGS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
    "token_normalize_func": None,
}


def train(context: typer.Context) -> None:
    """Train a memory for a base by distilling the base's own full attention.

    ahn train [FILE.yaml | FILE.json] [--name value ...]: the options of `ahn train --help` and
    every one of transformers' TrainingArguments; the command line wins over the file.
    """
    arguments = parse(context.args)
    from ahn.training.process_group import leave_group
    from ahn.training.run import run
    from ahn.training.stop import SIGTERM_CODE

    outcome = run(*arguments)
    if arguments[-1].process_index == 0:
        folder = arguments[-1].output_dir
        if outcome.stopped:
            print(f"SIGTERM: {folder} has a checkpoint; --resume_from_checkpoint last goes on.")
        else:
            print(f"{folder} holds the memory.")
        print(json.dumps(outcome.metrics))
    leave_group()
    if outcome.stopped:
        sys.exit(SIGTERM_CODE)


def parse(words: list[str]) -> Any:
    """The four groups of arguments; raises ValueError, in one line, for what is wrong."""
    try:
        from transformers import HfArgumentParser

        from ahn.training.arguments import DistillArguments, ModelArguments, RunArguments
        from ahn.training.data import DataArguments
    except ImportError as error:
        raise ValueError(f"train: expected pip install ahn[train], got: {error}") from error

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(f"command line: expected options of --help, got: {message}")

    groups: Any = (ModelArguments, DataArguments, DistillArguments, RunArguments)
    parser = Parser(groups, prog="ahn train", description=train.__doc__, allow_abbrev=False)
    if words and Path(words[0]).suffix in (".yaml", ".yml", ".json"):
        words = [*_words(_read(Path(words[0]))), *words[1:]]
    return parser.parse_args_into_dataclasses(words)


def _read(path: Path) -> dict[str, Any]:
    """The object in a YAML or JSON file (JSON is YAML)."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
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
