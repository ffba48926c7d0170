"""The results of `ahn bench`, as a table and as JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ahn.cli.output import print_json


def report(
    what: str,
    rows: list[dict[str, Any]],
    ceilings: dict[str, float],
    out: Path | None,
    facts: dict[str, Any],
    as_json: bool = False,
) -> None:
    """Print the table or the line of JSON; write the file where one is wanted."""
    from rich.console import Console
    from rich.table import Table

    from ahn.bench import environment
    from ahn.io.files import write_json

    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns, title=f"ahn bench {what}")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    if not as_json:
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    result = {
        **environment(_command(sys.argv[1:])),
        "bench": what,
        **facts,
        **ceilings,
        "rows": rows,
    }
    if out is not None:
        write_json(out, result)
    print_json(result, as_json)


def _command(arguments: list[str]) -> str:
    """The command line without `--out`, which names a place on this machine."""
    words, skipped = ["ahn"], False
    for argument in arguments:
        is_place = skipped or argument.startswith("--out=")
        skipped = argument == "--out"
        if not (is_place or skipped):
            words.append(argument)
    return " ".join(words)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
