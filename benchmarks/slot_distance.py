"""Slots further back than the base has seen: absolute positions, a clamped distance, left out.

`python benchmarks/slot_distance.py --base embedded --memory FOLDER --text FILE ... \
    [--lengths N ...] [--distance D] [--device DEVICE]`

The memory's folder has slots. Each text is read once a setting, in bounded memory; the table has
nats per token of the tokens beyond the budget, by position. Lines for the window alone, and for
full attention on the first tokens, say what there is to gain.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ahn
from ahn.checkpoint import load_tokenizer, read_memory
from ahn.checkpoint.memory import load_memory_state
from ahn.evaluation import stream_losses
from report import write_result


def settings_of(config: ahn.AHNConfig, distance: int) -> dict[str, ahn.AHNConfig]:
    """The memory's own settings, with each of the three ways to read far slots."""
    absolute = replace(config, slot_distance=None, slot_beyond="clamp")
    limited = {way: replace(config, slot_distance=distance, slot_beyond=way) for way in WAYS}
    return {"absolute": absolute, **limited}


WAYS = ("clamp", "drop")


def models(arguments: argparse.Namespace) -> Iterator[tuple[str, Any, AbstractContextManager]]:
    """Name, model and context of every line of the table."""
    stored = read_memory(arguments.memory)
    if not stored.settings.slots:
        raise ValueError(f"{arguments.memory}: expected a memory with slots, got one without")
    for name, settings in settings_of(stored.settings, arguments.distance).items():
        base = ahn.from_pretrained(arguments.base, dtype=arguments.dtype)
        model = ahn.attach(base, settings).to(arguments.device).eval()
        load_memory_state(model, stored.state)
        yield name, model, nullcontext()
        if name == "absolute":
            yield "window", model, ahn.memory_off(model)
            yield "full", model, ahn.disabled(model)


def by_position(losses: Tensor, first: int, ends: list[int]) -> dict[str, float]:
    """Mean nats of the tokens from `first` to each end, from the end before it on."""
    starts = [first, *ends[:-1]]
    return {
        f"{a}-{b}": losses[a - 1 : b - 1].mean().item()
        for a, b in zip(starts, ends)
        if b - 1 <= len(losses)
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows by name, each a mean over the texts."""
    tokenizer = load_tokenizer(arguments.base)
    longest, rows = max(arguments.lengths), {}
    texts = [tokenizer(Path(x).read_text(), return_tensors="pt").input_ids for x in arguments.text]
    if short := [len(x[0]) for x in texts if len(x[0]) < longest]:
        raise ValueError(f"text: expected at least {longest} tokens, got {short[0]}")
    for name, model, context in models(arguments):
        most = arguments.full if name == "full" else longest
        found = []
        with context:
            for ids in texts:
                chunks = stream_losses(model, ids[:, :most], prefill_chunk_size=arguments.chunk)
                losses = torch.cat([x.float().cpu() for x in chunks])
                found.append(by_position(losses, arguments.first, sorted(arguments.lengths)))
        rows[name] = {key: sum(x[key] for x in found) / len(found) for key in found[0]}
        print(name, {key: round(x, 4) for key, x in rows[name].items()}, flush=True)
    return rows


def main() -> None:
    """Measure, and write `results/slot_distance.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--memory", required=True)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768, 102400])
    parser.add_argument("--distance", type=int, default=8192)
    parser.add_argument("--full", type=int, default=16384, help="Tokens read with full attention.")
    parser.add_argument("--first", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    result = {"arguments": vars(arguments), "nats": measure(arguments)}
    write_result("slot_distance", result)


if __name__ == "__main__":
    main()
