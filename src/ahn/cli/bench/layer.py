"""`ahn bench kernels`: the kernels of one layer."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Option

from ahn.cli.bench import options
from ahn.cli.bench.result import report
from ahn.cli.bench.setup import placed
from ahn.cli.options import Device, at_least
from ahn.cli.output import Json, check_target
from ahn.io.progress import progress


def kernels(
    tokens: options.Tokens = 131072,
    heads: Annotated[int, at_least(1, "Query heads.")] = 16,
    groups: Annotated[int, at_least(1, "Key-value heads.")] = 2,
    dim: Annotated[int, at_least(1, "Size of a head.")] = 128,
    window: options.Window = 32640,
    prefill_chunk_size: Annotated[int, at_least(1, "Queries of the window's attention.")] = 8192,
    gradients: Annotated[
        bool,
        Option(
            "--gradients", help="Measure training, both passes; --tokens is the length of a text."
        ),
    ] = False,
    peers: Annotated[bool, Option(help="Others' kernels too; their tuning takes minutes.")] = True,
    dtype: options.Dtype = "bfloat16",
    device: Device = None,
    out: options.Out = None,
    as_json: Json = False,
) -> None:
    """The kernels of one layer beside their peers."""
    check_target("--out", out)
    from ahn.bench import bench_kernels, measure_ceilings
    from ahn.bench.gradients import bench_gradients

    place, number = placed(device, dtype)
    sizes = {"tokens": tokens, "heads": heads, "groups": groups, "dim": dim, "window": window}
    known: dict[str, Any] = {**sizes, "device": place, "dtype": number}
    with progress("rows") as shown:
        if gradients:
            rows = bench_gradients(**known, report=shown)
        else:
            known |= {"prefill_chunk_size": prefill_chunk_size, "peers": peers}
            rows = bench_kernels(**known, report=shown)
    report("kernels", rows, measure_ceilings(place), out, {**sizes, "dtype": dtype}, as_json)
