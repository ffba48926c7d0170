"""The options that several of `ahn bench`'s commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ahn.cli.options import NAMES, at_least, several

Model = Annotated[
    str,
    Option(
        help="qwen2.5-0.5b, -1.5b, -3b, -7b, -14b or tiny (random weights), a config.json "
        f"(random weights), or for trained weights a folder, a hub name or {NAMES}."
    ),
]
Methods = Annotated[str, Option(help="Of ahn, window and full, joined by commas.")]
Cell = Annotated[str, Option(help="GatedDeltaNet, DeltaNet, Mamba2, a registered cell, or none.")]
Slots = Annotated[int, at_least(0, "Exact slots of each key head.")]
SlotBits = Annotated[int, Option(help="Of each number in a slot: 16, 8 or 4.")]
Window = Annotated[int, at_least(1, "Tokens seen exactly.")]
Sinks = Annotated[int, at_least(0, "First tokens always seen.")]
Tokens = Annotated[int, at_least(1, "Tokens in the cache.")]
NewTokens = Annotated[int, at_least(8, "Tokens to time.")]
Repeats = Annotated[int, at_least(1, "Runs; their median counts.")]
Lengths = Annotated[Any, several(1, "Tokens of the prompt, with commas.")]
Windows = Annotated[Any, several(1, "Tokens seen exactly, with commas.")]
Chunks = Annotated[
    Any,
    several(
        1,
        "Tokens of the prompt read at a time, with commas; left out, chosen by the memory that "
        "is free.",
    ),
]
Sizes = Annotated[Any, several(1, "Batch sizes with commas; left out, up to what fits.")]
Dtype = Annotated[str, Option(help="bfloat16, float16 or float32.")]
Out = Annotated[Path | None, Option(help="File to write the JSON to as well.")]
