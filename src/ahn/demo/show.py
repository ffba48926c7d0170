"""The demo on a terminal: a table, and what it says in words."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ahn.demo.result import FULL, WINDOW, DemoResult, Row

MIB = 2**20


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
    table.add_column("looking back with", no_wrap=True)
    table.add_column(f"facts of {result.facts}", justify="right")
    for heading in ("bits per byte", "gap recovered", "cache MiB", "tokens/s"):
        table.add_column(heading, justify="right")
    for row in result.rows:
        table.add_row(*_cells(row))
    console.print(table)
    for line in verdict(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def verdict(result: DemoResult) -> list[str]:
    """What the table says, in a few sentences."""
    full, window = result.row(FULL), result.row(WINDOW)
    lines = []
    if result.facts:
        best = max((row for row in result.rows if row is not full), key=lambda row: row.found)
        lines.append(
            f"Of {result.facts} facts that have left the window, full attention finds "
            f"{full.found}, the window alone {window.found}, {best.name} {best.found}."
        )
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


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        str(row.found),
        f"{row.bits_per_byte:.4f}",
        "-" if row.recovered is None else f"{row.recovered:.1%}",
        f"{row.cache_bytes / MIB:.2f}",
        f"{row.tokens_per_second:.0f}",
    )
