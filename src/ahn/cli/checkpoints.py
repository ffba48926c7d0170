"""`ahn merge`, `split`, `inspect` and `diff`: folders of bases and memories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from ahn.cli import options

if TYPE_CHECKING:
    from ahn.checkpoint.merging import Progress

Base = Annotated[str, Argument(help=f"Folder or hub name of a base, or {options.NAMES}.")]
AMemory = Annotated[
    str,
    Argument(
        help=f"Folder or hub name of a memory; for {options.NAMES} also the cell of one of its own."
    ),
]
Out = Annotated[Path, Argument(help="A new or empty folder.")]
Merged = Annotated[Path, Argument(help="Folder with base and memory.")]
Folder = Annotated[Path, Argument(help="Folder of a base, of a memory, or of both.")]
Format = Annotated[
    str | None, Option(help="ahn or released; left out, the layout that was merged.")
]
Verify = Annotated[bool, Option("--verify", help="Also read every file that has a checksum.")]
# `generate` describes both options for a model that runs; here they become the folder's settings.
MergedWindow = Annotated[
    int | None,
    options.at_least(
        1, "Tokens seen exactly, as the folder's setting; left out, the memory's own."
    ),
]
MergedSinks = Annotated[
    int | None,
    options.at_least(
        0, "First tokens always seen, as the folder's setting; left out, the memory's own."
    ),
]
Top = Annotated[int, options.at_least(1, "Tensors to list.")]


def merge(
    base: Base,
    memory: AMemory,
    out: Out,
    window: MergedWindow = None,
    num_sinks: MergedSinks = None,
) -> None:
    """Write one folder with base and memory, that AutoModelForCausalLM loads.

    After `import ahn` it does so at once, without it with trust_remote_code=True. Weights are
    copied in blocks; the folder appears when it is complete.
    """
    from ahn import checkpoint

    with _bar() as progress:
        checkpoint.merge(base, memory, out, window=window, num_sinks=num_sinks, progress=progress)
    print(f"{out} holds {base} with the memory {memory}.")


def split(merged: Merged, out: Out, format: Format = None) -> None:
    """Write the memory of a merged folder as a folder of its own."""
    from ahn import checkpoint

    checkpoint.split(merged, out, format=format)
    print(f"{out} holds the memory of {merged}.")


def inspect(path: Folder, verify: Verify = False) -> None:
    """Say what a folder holds; the last line of the output is one JSON object."""
    from ahn import checkpoint

    facts = checkpoint.inspect(path, verify=verify)
    table = Table(show_header=False)
    for name, value in _lines(facts):
        table.add_row(name, value)
    Console().print(table, markup=False)
    print(json.dumps(facts))


def diff(left: Folder, right: Folder, top: Top = 20) -> None:
    """Compare two folders tensor by tensor; ends with 1 where they differ."""
    from ahn import checkpoint

    difference = checkpoint.diff(left, right)
    for where, keys in ((left, difference.only_left), (right, difference.only_right)):
        for key in keys[:top]:
            print(f"only in {where}: {key}")
        if len(keys) > top:
            print(f"only in {where}: {len(keys) - top} more")
    table = Table("tensor", str(left), str(right), "largest difference")
    for each in difference.differing[:top]:
        distance = "other shape" if each.distance is None else f"{each.distance:.3g}"
        table.add_row(each.key, each.left, each.right, distance)
    if difference.differing:
        Console().print(table)
    print(f"{difference.equal} tensors are equal, {len(difference.differing)} differ.")
    print(json.dumps(asdict(difference)))
    if difference:
        raise typer.Exit(1)


COMMANDS = (merge, split, inspect, diff)


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts of `inspect`, for people."""
    yield "kind", facts["kind"]
    for group in ("settings", "base"):
        for name, value in (facts[group] or {}).items():
            yield f"{group}: {name}", str(value)
    layers = facts["layers"]
    yield "layers with a memory", f"{len(layers)}: {layers}" if layers else "none"
    for part, count in facts["parameters"].items():
        yield f"parameters: {part}", f"{count:,}"
    yield "parameters of the memory", f"{facts['memory_parameters']:,}"
    yield "dtypes", ", ".join(facts["dtypes"])
    yield "files", ", ".join(facts["files"])
    yield "bytes", f"{facts['bytes']:,}"


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar in bytes, on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task("copying", total=None)
        yield lambda name, done, total: shown.update(
            task, description=name, completed=done, total=total
        )
