"""`ahn bench`: speed and memory, as a table for people and one last line of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from ahn.cli.options import integer, numbers

app = typer.Typer(
    name="bench",
    help="Measure speed and memory beside full attention and the window alone.",
    rich_markup_mode=None,
)

Shape = Annotated[
    str,
    Option(
        "--model",
        help="qwen2.5-0.5b, -1.5b, -3b, -7b, -14b or tiny (random weights), a config.json "
        "(random weights), or a folder or hub name with weights.",
    ),
]
Cell = Annotated[str, Option(help="GatedDeltaNet, DeltaNet, Mamba2 or a registered cell.")]
Window = Annotated[int, Option(parser=integer(1), metavar="N", help="Tokens seen exactly.")]
Windows = Annotated[
    Any, Option(parser=numbers(int, 1), metavar="N,N", help="Tokens seen exactly, with commas.")
]
Chunks = Annotated[
    Any,
    Option(
        parser=numbers(int, 1),
        metavar="N,N",
        help="Tokens of the prompt read at a time, with commas; left out, chosen by the memory "
        "that is free.",
    ),
]
Profile = Annotated[
    bool, Option("--profile", help="Time of each kernel in one chunk, instead of whole prompts.")
]
Sinks = Annotated[int, Option(parser=integer(0), metavar="N", help="First tokens always seen.")]
Device = Annotated[str | None, Option(help="cpu, cuda, ...; left out, the GPU if there is one.")]
Dtype = Annotated[str, Option(help="bfloat16, float16 or float32.")]
Methods = Annotated[str, Option(help="Of ahn, window and full, joined by commas.")]
Out = Annotated[Path | None, Option(help="File to write the JSON to as well.")]
Liger = Annotated[
    bool,
    Option("--liger/--no-liger", help="Run the base's norms, RoPE and MLP by Liger-Kernel."),
]
Lengths = Annotated[
    Any, Option(parser=numbers(int, 1), metavar="N,N", help="Tokens of the prompt, with commas.")
]
Tokens = Annotated[int, Option(parser=integer(1), metavar="N", help="Tokens read before.")]
Repeats = Annotated[int, Option(parser=integer(1), metavar="N", help="Runs; their median counts.")]
Steps = Annotated[str, Option(help="Of auto, eager, graph, fused and compile, joined by commas.")]
NewTokens = Annotated[int, Option(parser=integer(8), metavar="N", help="Tokens to time.")]
Sizes = Annotated[
    Any,
    Option(
        parser=numbers(int, 1),
        metavar="N,N",
        help="Batch sizes with commas; left out, up to what fits.",
    ),
]


@app.command()
def prefill(
    model: Shape = "qwen2.5-3b",
    lengths: Lengths = "131072",
    methods: Methods = "ahn,window,full",
    memory: Cell = "GatedDeltaNet",
    windows: Windows = "32640",
    num_sinks: Sinks = 128,
    chunks: Chunks = None,
    repeats: Repeats = 3,
    profile: Profile = False,
    liger: Liger = False,
    dtype: Dtype = "bfloat16",
    device: Device = None,
    out: Out = None,
) -> None:
    """Time and peak memory of reading a prompt."""
    from ahn.bench import bench_prefill, profile_prefill

    chosen, sizes = _names(methods, "--methods"), list(windows)
    built, ceilings = _build(model, memory, sizes[0], num_sinks, dtype, device, liger)
    options: dict[str, Any] = {"windows": sizes, "chunks": None if chunks is None else list(chunks)}
    if profile:
        rows = profile_prefill(built, chosen, **options)
    else:
        rows = bench_prefill(
            built, list(lengths), chosen, repeats=repeats, ceilings=ceilings, **options
        )
    facts = _facts(model, built) | {"windows": sizes}
    _report("prefill", rows, ceilings, out, facts)


@app.command()
def decode(
    model: Shape = "qwen2.5-3b",
    tokens: Tokens = 131072,
    methods: Methods = "ahn,window,full",
    steps: Steps = "eager,graph,fused",
    new_tokens: NewTokens = 128,
    memory: Cell = "GatedDeltaNet",
    window: Window = 32640,
    num_sinks: Sinks = 128,
    liger: Liger = False,
    dtype: Dtype = "bfloat16",
    device: Device = None,
    out: Out = None,
) -> None:
    """Time per token after a long text (the cache is filled with random numbers)."""
    from ahn.bench import bench_decode

    chosen, how = _names(methods, "--methods"), steps.split(",")
    built, ceilings = _build(model, memory, window, num_sinks, dtype, device, liger)
    rows = bench_decode(built, tokens, chosen, steps=how, new_tokens=new_tokens, ceilings=ceilings)
    _report("decode", rows, ceilings, out, _facts(model, built))


@app.command()
def batch(
    model: Shape = "qwen2.5-3b",
    tokens: Tokens = 131072,
    methods: Methods = "ahn,full",
    sizes: Sizes = None,
    step: Annotated[str, Option(help="auto, eager, graph, fused or compile.")] = "auto",
    new_tokens: NewTokens = 32,
    memory: Cell = "GatedDeltaNet",
    window: Window = 32640,
    num_sinks: Sinks = 128,
    liger: Liger = False,
    dtype: Dtype = "bfloat16",
    device: Device = None,
    out: Out = None,
) -> None:
    """Tokens per second of many sequences decoded together."""
    from ahn.bench import bench_batch

    chosen = _names(methods, "--methods")
    wanted = None if sizes is None else list(sizes)
    built, ceilings = _build(model, memory, window, num_sinks, dtype, device, liger)
    rows = bench_batch(
        built, tokens, chosen, sizes=wanted, step=step, new_tokens=new_tokens, ceilings=ceilings
    )
    _report("batch", rows, ceilings, out, _facts(model, built))


@app.command()
def kernels(
    tokens: Tokens = 131072,
    heads: Annotated[int, Option(parser=integer(1), metavar="N", help="Query heads.")] = 16,
    groups: Annotated[int, Option(parser=integer(1), metavar="N", help="Key-value heads.")] = 2,
    dim: Annotated[int, Option(parser=integer(1), metavar="N", help="Size of a head.")] = 128,
    window: Window = 32640,
    prefill_chunk_size: Annotated[
        int, Option(parser=integer(1), metavar="N", help="Queries of the window's attention.")
    ] = 8192,
    dtype: Dtype = "bfloat16",
    device: Device = None,
    out: Out = None,
) -> None:
    """The kernels of one layer beside their peers."""
    from ahn.bench import bench_kernels, measure_ceilings

    place, number = _place(device, dtype)
    sizes = {"tokens": tokens, "heads": heads, "groups": groups, "dim": dim, "window": window}
    rows = bench_kernels(**sizes, chunk=prefill_chunk_size, device=place, dtype=number)
    _report("kernels", rows, measure_ceilings(place), out, {**sizes, "dtype": dtype})


def _build(
    model: str,
    memory: str,
    window: int,
    num_sinks: int,
    dtype: str,
    device: str | None,
    liger: bool,
) -> tuple[Any, dict[str, float]]:
    """The model to measure, and the machine's ceilings."""
    from ahn.bench import build, measure_ceilings
    from ahn.config import AHNConfig

    place, number = _place(device, dtype)
    ceilings = measure_ceilings(place)
    settings = AHNConfig(memory=memory, window=window, num_sinks=num_sinks)
    return build(model, settings, place, number, liger=liger), ceilings


def _place(device: str | None, dtype: str) -> tuple[Any, Any]:
    import torch

    if dtype not in ("bfloat16", "float16", "float32"):
        raise ValueError(f"--dtype: expected bfloat16, float16 or float32, got {dtype!r}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return place, getattr(torch, dtype)


def _names(text: str, option: str) -> list[str]:
    from ahn.bench import METHODS

    names = text.split(",")
    if wrong := [name for name in names if name not in METHODS]:
        raise ValueError(f"{option}: expected some of {', '.join(METHODS)}, got {wrong[0]!r}")
    return names


def _facts(name: str, built: Any) -> dict[str, Any]:
    from ahn.attach import uses_liger

    return {
        "model": name,
        "weights_gb": built.weights_bytes / 1e9,
        "dtype": str(built.model.dtype).removeprefix("torch."),
        "liger": uses_liger(built.model),
        **built.settings.to_dict(),
    }


def _report(
    what: str,
    rows: list[dict[str, Any]],
    ceilings: dict[str, float],
    out: Path | None,
    facts: dict[str, Any],
) -> None:
    """Print the table and the line of JSON; write the file where one is wanted."""
    from rich.console import Console
    from rich.table import Table

    from ahn.bench import environment
    from ahn.files import write_json

    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns, title=f"ahn bench {what}")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    command = " ".join(["ahn", *sys.argv[1:]])
    result = {**environment(command), "bench": what, **facts, **ceilings, "rows": rows}
    if out is not None:
        write_json(out, result)
    print(json.dumps(result))


def _cell(value: Any) -> str:
    show: Callable[[Any], str] = str
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else show(value)
