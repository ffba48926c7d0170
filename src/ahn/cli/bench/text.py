"""`ahn bench prefill`, `decode` and `batch`: prompts and new tokens of a model."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Option

from ahn.cli.bench import options
from ahn.cli.bench.result import report
from ahn.cli.bench.setup import Setup, named
from ahn.cli.options import Device, Liger
from ahn.cli.output import Json, check_target
from ahn.io.progress import progress


def prefill(
    model: options.Model = "qwen2.5-3b",
    lengths: options.Lengths = "131072",
    methods: options.Methods = "ahn,window,full",
    memory: options.Cell = "GatedDeltaNet",
    windows: options.Windows = "32640",
    num_sinks: options.Sinks = 128,
    slots: options.Slots = 0,
    slot_bits: options.SlotBits = 16,
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
    as_json: Json = False,
) -> None:
    """Time and peak memory of reading a prompt."""
    check_target("--out", out)
    from ahn.bench import bench_prefill, profile_prefill

    chosen, sizes = named(methods), list(windows)
    setup = Setup(
        model, memory, sizes[0], num_sinks, dtype, device, liger, slots=slots, slot_bits=slot_bits
    )
    variants: dict[str, Any] = {
        "windows": sizes,
        "prefill_chunk_sizes": None if chunks is None else list(chunks),
    }
    with progress("settings") as shown:
        built, ceilings = setup.build(shown)
        if profile:
            rows = profile_prefill(built, chosen, **variants)
        else:
            known = {"repeats": repeats, "ceilings": ceilings, "report": shown, **variants}
            rows = bench_prefill(built, list(lengths), chosen, **known)
    report("prefill", rows, ceilings, out, setup.facts(built) | {"windows": sizes}, as_json)


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
    slots: options.Slots = 0,
    slot_bits: options.SlotBits = 16,
    liger: Liger = False,
    dtype: options.Dtype = "bfloat16",
    device: Device = None,
    out: options.Out = None,
    as_json: Json = False,
) -> None:
    """Time per token after a long text (the cache is filled with random numbers)."""
    check_target("--out", out)
    from ahn.bench import bench_decode

    chosen, how = named(methods), steps.split(",")
    setup = Setup(
        model, memory, window, num_sinks, dtype, device, liger, slots=slots, slot_bits=slot_bits
    )
    with progress("rows") as shown:
        built, ceilings = setup.build(shown)
        known: dict[str, Any] = {"steps": how, "new_tokens": new_tokens, "ceilings": ceilings}
        rows = bench_decode(built, tokens, chosen, report=shown, **known)
    report("decode", rows, ceilings, out, setup.facts(built), as_json)


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
    slots: options.Slots = 0,
    slot_bits: options.SlotBits = 16,
    liger: Liger = False,
    dtype: options.Dtype = "bfloat16",
    device: Device = None,
    out: options.Out = None,
    as_json: Json = False,
) -> None:
    """Tokens per second of many sequences decoded together."""
    check_target("--out", out)
    from ahn.bench import bench_batch

    chosen, wanted = named(methods), None if sizes is None else list(sizes)
    setup = Setup(
        model, memory, window, num_sinks, dtype, device, liger, slots=slots, slot_bits=slot_bits
    )
    with progress("rows") as shown:
        built, ceilings = setup.build(shown)
        how: dict[str, Any] = {"step": step, "new_tokens": new_tokens, "ceilings": ceilings}
        rows = bench_batch(built, tokens, chosen, sizes=wanted, report=shown, **how)
    report("batch", rows, ceilings, out, setup.facts(built), as_json)
