"""`ahn bench prefill`, `decode` and `batch`: a model that reads and answers."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Option

from ahn.cli.bench import options
from ahn.cli.bench.result import report
from ahn.cli.bench.setup import Setup, named
from ahn.cli.options import Device, Liger


def prefill(
    model: options.Model = "qwen2.5-3b",
    lengths: options.Lengths = "131072",
    methods: options.Methods = "ahn,window,full",
    memory: options.Cell = "GatedDeltaNet",
    windows: options.Windows = "32640",
    num_sinks: options.Sinks = 128,
    chunks: options.Chunks = None,
    repeats: options.Repeats = 3,
    profile: Annotated[
        bool,
        Option("--profile", help="Time of each kernel in one chunk, instead of whole prompts."),
    ] = False,
    liger: Liger = False,
    dtype: options.Dtype = "bfloat16",
    device: Device = None,
    out: options.Out = None,
) -> None:
    """Time and peak memory of reading a prompt."""
    from ahn.bench import bench_prefill, profile_prefill

    chosen, sizes = named(methods), list(windows)
    setup = Setup(model, memory, sizes[0], num_sinks, dtype, device, liger)
    built, ceilings = setup.build()
    pieces: dict[str, Any] = {
        "windows": sizes,
        "prefill_chunk_sizes": None if chunks is None else list(chunks),
    }
    if profile:
        rows = profile_prefill(built, chosen, **pieces)
    else:
        known = {"repeats": repeats, "ceilings": ceilings, **pieces}
        rows = bench_prefill(built, list(lengths), chosen, **known)
    report("prefill", rows, ceilings, out, setup.facts(built) | {"windows": sizes})


def decode(
    model: options.Model = "qwen2.5-3b",
    tokens: options.Tokens = 131072,
    methods: options.Methods = "ahn,window,full",
    steps: Annotated[
        str, Option(help="Of auto, eager, graph, fused and compile, joined by commas.")
    ] = "eager,graph,fused",
    new_tokens: options.NewTokens = 128,
    memory: options.Cell = "GatedDeltaNet",
    window: options.Window = 32640,
    num_sinks: options.Sinks = 128,
    liger: Liger = False,
    dtype: options.Dtype = "bfloat16",
    device: Device = None,
    out: options.Out = None,
) -> None:
    """Time per token after a long text (the cache is filled with random numbers)."""
    from ahn.bench import bench_decode

    chosen, how = named(methods), steps.split(",")
    setup = Setup(model, memory, window, num_sinks, dtype, device, liger)
    built, ceilings = setup.build()
    rows = bench_decode(built, tokens, chosen, steps=how, new_tokens=new_tokens, ceilings=ceilings)
    report("decode", rows, ceilings, out, setup.facts(built))


def batch(
    model: options.Model = "qwen2.5-3b",
    tokens: options.Tokens = 131072,
    methods: options.Methods = "ahn,full",
    sizes: options.Sizes = None,
    step: Annotated[str, Option(help="auto, eager, graph, fused or compile.")] = "auto",
    new_tokens: options.NewTokens = 32,
    memory: options.Cell = "GatedDeltaNet",
    window: options.Window = 32640,
    num_sinks: options.Sinks = 128,
    liger: Liger = False,
    dtype: options.Dtype = "bfloat16",
    device: Device = None,
    out: options.Out = None,
) -> None:
    """Tokens per second of many sequences decoded together."""
    from ahn.bench import bench_batch

    chosen, wanted = named(methods), None if sizes is None else list(sizes)
    setup = Setup(model, memory, window, num_sinks, dtype, device, liger)
    built, ceilings = setup.build()
    how: dict[str, Any] = {"step": step, "new_tokens": new_tokens, "ceilings": ceilings}
    rows = bench_batch(built, tokens, chosen, sizes=wanted, **how)
    report("batch", rows, ceilings, out, setup.facts(built))
