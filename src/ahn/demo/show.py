"""The demo on a terminal: progress bars, a table, and what it says in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from ahn.demo.result import FULL, WINDOW, DemoResult, Row
from ahn.demo.run import Report

MIB = 2**20


@contextmanager
def progress(console: Console) -> Iterator[Report]:
    """One bar for each stage that is reported, gone when the block ends; none off a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bars: dict[str, TaskID] = {}
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as shown:

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in bars:
                bars[stage] = shown.add_task(stage, total=total, note=note)
            shown.update(bars[stage], completed=done, note=note)

        yield report


def print_result(result: DemoResult, console: Console) -> None:
    """The table, and below it what it says."""
    window, sinks = result.memory["window"], result.memory["num_sinks"]
    names = ", ".join(dict.fromkeys(document["name"] for document in result.documents))
    tokens = sum(document["tokens"] for document in result.documents)
    console.print(
        f"Read {tokens} tokens in {len(result.documents)} documents of {names}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = Table(title=f"Beyond the budget of {sinks} sinks + a window of {window} tokens")
    table.add_column("looking back with")
    for heading in ("bits per byte", "gap recovered", "cache MiB", "tokens/s"):
        table.add_column(heading, justify="right")
    for row in result.rows:
        table.add_row(*_cells(row))
    console.print(table)
    for line in verdict(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def verdict(result: DemoResult) -> list[str]:
    """What the table says, in one or two sentences."""
    full, window = result.row(FULL), result.row(WINDOW)
    lines = []
    if window.recovered is None:
        lines.append("On this text full attention predicts no better than the window: no gap.")
    lines += [
        f"{row.name} does not beat the window alone on this text."
        for row in result.rows
        if row not in (full, window) and row.bits_per_byte >= window.bits_per_byte
    ]
    if result.training is not None:
        fresh, work = result.row(result.training.row), result.training
        gained = window.bits_per_byte - fresh.bits_per_byte
        lines.append(
            f"The fresh memory saw {work.tokens} tokens of other text in {work.seconds:.0f} s and "
            f"{'gained' if gained > 0 else 'lost'} {abs(gained):.4f} bits per byte."
        )
    return lines


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    return (
        row.name,
        f"{row.bits_per_byte:.4f}",
        "-" if row.recovered is None else f"{row.recovered:.1%}",
        f"{row.cache_bytes / MIB:.2f}",
        f"{row.tokens_per_second:.0f}",
    )
