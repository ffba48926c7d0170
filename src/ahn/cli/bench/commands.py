"""The commands of `ahn bench`."""

from __future__ import annotations

import typer

from ahn.cli.bench.layer import kernels
from ahn.cli.bench.text import batch, decode, prefill
from ahn.cli.bench.training import train

app = typer.Typer(
    name="bench",
    help="Measure speed and memory beside full attention and the window alone.",
    rich_markup_mode=None,
)
for _command in (prefill, decode, batch, train, kernels):
    app.command()(_command)
