"""The commands of `ahn bench`."""

from __future__ import annotations

from collections.abc import Callable

import typer

from ahn.cli.bench.layer import kernels
from ahn.cli.bench.text import batch, decode, prefill
from ahn.cli.bench.training import train
from ahn.cli.output import examples

app = typer.Typer(
    name="bench",
    help="Measure speed and memory beside full attention and the window alone.",
    rich_markup_mode=None,
    epilog=examples("ahn bench prefill --model tiny --lengths 4096 --windows 256 --json"),
)
EXAMPLES: dict[Callable[..., None], tuple[str, ...]] = {
    prefill: ("ahn bench prefill --model tiny --lengths 4096 --windows 256 --dtype float32",),
    decode: ("ahn bench decode --model tiny --tokens 4096 --window 256 --steps eager",),
    batch: ("ahn bench batch --model qwen2.5-3b --sizes 1,8,64",),
    train: ("ahn bench train --liger", "torchrun --nproc_per_node 8 -m ahn bench train"),
    kernels: ("ahn bench kernels --gradients --no-peers",),
}
for _command, _lines in EXAMPLES.items():
    app.command(epilog=examples(*_lines))(_command)
