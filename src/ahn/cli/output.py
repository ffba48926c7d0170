"""Output of commands: text and tables, or one line of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ahn.io.files import check_writable

Json = Annotated[
    bool,
    Option("--json", help="Print one line of JSON alone; without it JSON ends what is piped."),
]


def print_json(values: Mapping[str, Any], as_json: bool) -> None:
    """The line of JSON: where it is asked for, and as the last line of what is no terminal."""
    if as_json or not sys.stdout.isatty():
        print(json.dumps(values))


def check_target(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written before the minutes of work, not after."""
    if path is not None:
        check_writable(path, option)


def check_folder(option: str, path: Path) -> None:
    """Refuse a folder that cannot be made or written, before the work."""
    place = next(x for x in (path, *path.absolute().parents) if x.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"{option}: expected a folder that can be written, got {path}")


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
