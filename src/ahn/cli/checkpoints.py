"""`ahn merge`, `split`, `inspect` and `diff`: folders of bases and memories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from ahn.checkpoint.named_models import resolve
from ahn.cli import options
from ahn.cli.output import Json, check_folder, examples, print_json
from ahn.io.progress import progress

if TYPE_CHECKING:
    from ahn.checkpoint.compare import Diff

Base = Annotated[str, Argument(help=f"Folder or hub name of a base, or {options.NAMES}.")]
AMemory = Annotated[
    str,
    Argument(
        help=f"Folder or hub name of a memory; for {options.NAMES} also the cell of one of its own."
    ),
]
Out = Annotated[Path, Argument(help="A new or empty folder.")]
Merged = Annotated[str, Argument(help="Folder or hub name of a base with a memory.")]
Folder = Annotated[
    str,
    Argument(help=f"Folder or hub name of a base, of a memory or of both, or {options.NAMES}."),
]
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

    check_folder("out", out)
    with progress("bytes") as report:
        checkpoint.merge(base, memory, out, window=window, num_sinks=num_sinks, progress=report)
    print(f"{out} holds {base} with the memory {memory}.")


def split(merged: Merged, out: Out, format: Format = None) -> None:
    """Write the memory of a merged folder as a folder of its own."""
    from ahn import checkpoint

    check_folder("out", out)
    with progress("bytes") as report:
        checkpoint.split(place(merged), out, format=format, progress=report)
    print(f"{out} holds the memory of {merged}.")


def inspect(path: Folder, verify: Verify = False, as_json: Json = False) -> None:
    """Say what a folder holds."""
    from ahn import checkpoint

    with progress("bytes") as report:
        facts = checkpoint.inspect(place(path), verify=verify, progress=report)
    if not as_json:
        table = Table(show_header=False)
        for name, value in _lines(facts):
            table.add_row(name, value)
        Console().print(table, markup=False)
    print_json(facts, as_json)


def diff(left: Folder, right: Folder, top: Top = 20, as_json: Json = False) -> None:
    """Compare two folders tensor by tensor; ends with 1 where they differ."""
    from ahn import checkpoint

    with progress("tensors") as report:
        difference = checkpoint.diff(place(left), place(right), progress=report)
    if not as_json:
        _show(difference, left, right, top)
    print_json(asdict(difference), as_json)
    if difference:
        raise typer.Exit(1)


def place(name: str) -> Path:
    """The folder that a user names: a folder, a named model's, or a copy of one on the hub."""
    found = Path(resolve(name)[0])
    is_hub_name = name.count("/") == 1 and not found.exists() and not Path(name).parent.exists()
    if not is_hub_name:
        return found
    from ahn.checkpoint.hub import BASE_FILES, fetched

    return fetched(name, None, {}, BASE_FILES, "folder")


def _show(difference: Diff, left: str, right: str, top: int) -> None:
    """Print the differences of two checkpoints as text."""
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


COMMANDS: dict[Callable[..., None], str] = {
    merge: examples("ahn merge BASE MEMORY merged --window 32640"),
    split: examples("ahn split merged memory", "ahn split merged memory --format released"),
    inspect: examples("ahn inspect embedded", "ahn inspect merged --verify --json"),
    diff: examples("ahn diff memory other-memory --top 5"),
}


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
