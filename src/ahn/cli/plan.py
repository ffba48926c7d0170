"""`ahn plan`: what fits on a GPU, before anything is downloaded or bought."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import BadParameter, Option

from ahn.cli import options
from ahn.cli.output import Json, check_target, examples, print_json

if TYPE_CHECKING:
    from ahn.planning import Gpu, Plan

GIB = 2**30
CELLS = "GatedDeltaNet, DeltaNet, Mamba2 or a registered one"
EXAMPLES = examples(
    "ahn plan --model qwen2.5-7b --length 131072 --gpu 4090 --dtype int4",
    "ahn plan --model Qwen/Qwen2.5-14B-Instruct --window 8064 --batch 16 --gpu h200",
    "ahn plan --model embedded --window 256 --num-sinks 4 --vram 2 --png plan.png --json",
)


def positive(value: str) -> float:
    """A finite number above 0; raises BadParameter in this package's words."""
    try:
        number = options.not_negative(value)
    except BadParameter:
        number = 0.0
    if not number:
        raise BadParameter(f"expected a number above 0, got {value!r}")
    return number


Model = Annotated[
    str,
    Option(
        help="A shape such as qwen2.5-7b, a config.json, a folder, a name on the hub, or the word "
        f"{options.NAMES}. Only the config is read."
    ),
]
Length = Annotated[int, options.at_least(1, "Tokens of a text.")]
Batch = Annotated[int, options.at_least(1, "Texts at once.")]
Cell = Annotated[str, Option(help=f"The cell, {CELLS}; none: slots alone.")]
Window = Annotated[int, options.at_least(1, "Tokens seen exactly.")]
Sinks = Annotated[int, options.at_least(0, "First tokens always seen.")]
Slots = Annotated[int, options.at_least(0, "Exact slots of a key head.")]
SlotBits = Annotated[int, options.at_least(4, "Of a number in a slot: 16, 8 or 4.")]
GpuName = Annotated[
    str | None,
    Option(help="A GPU by name, its memory and its peak rates; an unknown name lists all."),
]
Vram = Annotated[
    float | None,
    Option(parser=positive, metavar="GiB", help="Memory of the GPU; wins over the named one's."),
]
Dtype = Annotated[
    list[str] | None,
    Option(
        metavar="NAME",
        help="Of the weights, several if given again: float32, bfloat16, float16, int8, int4.",
    ),
]
Png = Annotated[Path | None, Option(help="Picture to write: bytes by length.")]


def plan(
    model: Model,
    length: Length = 131072,
    memory: Cell = "GatedDeltaNet",
    window: Window = 32640,
    num_sinks: Sinks = 128,
    slots: Slots = 0,
    slot_bits: SlotBits = 16,
    batch: Batch = 1,
    gpu: GpuName = None,
    vram: Vram = None,
    dtype: Dtype = None,
    png: Png = None,
    as_json: Json = False,
) -> None:
    """Say what a model needs with full attention, a window and a memory, and what fits on a GPU.

    Times are bounds at the maker's peak rates. No weights are read or downloaded.
    """
    from ahn.bench.models import check_name, config_of
    from ahn.config import AHNConfig
    from ahn.planning import Decoder
    from ahn.planning import plan as planned

    check_target("--png", png)
    check_name(model)
    machine = _gpu(gpu, vram)
    cell = None if memory == "none" else memory
    settings = AHNConfig(
        memory=cell, window=window, num_sinks=num_sinks, slots=slots, slot_bits=slot_bits
    )
    decoder = Decoder.of(config_of(model), settings)
    plans = [
        planned(decoder, length, batch=batch, dtype=name, gpu=machine)
        for name in dtype or ["bfloat16"]
    ]
    if png is not None:
        from ahn.planning.figure import plan_figure

        plan_figure(decoder, plans[0], png, machine)
    facts = {"model": model, "settings": settings.to_dict(), "gpu": gpu, "vram": vram}
    if not as_json:
        _show(plans, machine, png)
    print_json({**facts, "plans": [each.to_dict() for each in plans]}, as_json)


def _gpu(name: str | None, vram: float | None) -> Gpu | None:
    """The named GPU with the memory asked for; one of unknown rates where only that is given."""
    from dataclasses import replace

    from ahn.planning import Gpu
    from ahn.planning.gpus import gpu_by_name

    known = None if name is None else gpu_by_name(name)
    if vram is None:
        return known
    nbytes = round(vram * GIB)
    return Gpu(nbytes, None, None) if known is None else replace(known, nbytes=nbytes)


def _show(plans: list[Plan], gpu: Gpu | None, png: Path | None) -> None:
    """Print plans as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for each in plans:
        weights = f"{each.parameters:,} parameters and {each.memory_parameters:,} of the memory"
        console.print(
            f"{each.dtype}: {weights}, {each.weights_nbytes / GIB:.2f} GiB", highlight=False
        )
        table = Table("", *each.costs, title=f"{each.length:,} tokens, batch {each.batch}")
        for name, value in ROWS.items():
            table.add_row(name, *(value(costs) for costs in each.costs.values()))
        console.print(table)
        if gpu is not None:
            print(_advice(each))
    if png is not None:
        print(f"The picture is in {png}.")


def _advice(each: Plan) -> str:
    what = f"{each.batch} texts of {each.length:,} tokens in {each.dtype}"
    if each.recommended_window is None:
        return f"No window is small enough for {what}."
    return f"For {what} take a window of {each.recommended_window:,} tokens."


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} s"


def _count(value: int | None, unknown: str) -> str:
    return unknown if value is None else f"{value:,}"


ROWS: dict[str, Any] = {
    "cache of a text": lambda x: f"{x.nbytes / 2**20:,.1f} MiB",
    "operations of the prompt": lambda x: f"{x.prefill_flops:.3g}",
    "operations of a token": lambda x: f"{x.decode_flops:.3g}",
    "prompt, at least": lambda x: _seconds(x.prefill_seconds),
    "a token, at least": lambda x: _seconds(x.decode_seconds),
    "texts that fit": lambda x: _count(x.largest_batch, ""),
    "tokens that fit": lambda x: _count(x.largest_length, "any" if x.largest_batch else ""),
}
