"""Facts of a long text asked for in a chat, and the text itself, by every way to look back.

    python benchmarks/chat_recall.py --memory FOLDER --text FILE --name NAME [--base smollm2]
        [--lengths N ...] [--haystacks N ...] [--device cuda] [--dtype bfloat16]

Each haystack is the first message of a chat and holds facts in forms that no memory was trained
on, all of them further back than the window; each question is a turn of its own. A fact counts as
found where every token of its value is the likeliest. Full attention reads no more tokens than the
base has positions. `newest` keeps the newest tokens in the same slots, `wider` is a window of the
memory's bytes; `clamp` and `drop` are the memory with far slots read at the base's longest distance
or left out. Writes results/chat_recall/NAME.json.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import ahn
from ahn import AHNConfig
from ahn.checkpoint import load_tokenizer
from ahn.demo.facts import facts_found, haystacks
from ahn.evaluation import cache_bytes, new_cache, token_losses
from ahn.evaluation.controls import newest_slots, random_slots
from report import write_result

CHUNK = 2048  # tokens of a forward


@dataclass(frozen=True)
class Way:
    """A model and how it looks back."""

    model: Any
    looking: Callable[[], AbstractContextManager[Any]] = nullcontext
    most: int | None = None  # tokens that it can read


def ways(base: str, memory: str, dtype: str, device: str) -> dict[str, Way]:
    """Every way to look back, by name."""
    model: Any = ahn.from_pretrained(base, memory, dtype=dtype).to(device).eval()
    own, positions = AHNConfig.from_dict(model.config.ahn_config), _positions(model)
    wide = AHNConfig(window=window_of_same_bytes(model, own), num_sinks=own.num_sinks)
    wider = ahn.attach(ahn.detach(copy.deepcopy(model)), wide)
    found = {
        "full": Way(model, lambda: ahn.disabled(model), positions),
        "window": Way(model, lambda: ahn.memory_off(model)),
        "memory": Way(model),
        "newest": Way(model, lambda: newest_slots(model)),
        "random": Way(model, lambda: random_slots(model)),
        "wider": Way(wider, lambda: ahn.memory_off(wider)),
    }
    for beyond in ("clamp", "drop"):
        far = replace(own, slot_distance=positions - 1, slot_beyond=beyond)
        other = ahn.attach(ahn.detach(copy.deepcopy(model)), far)
        other.load_state_dict(model.state_dict())
        found[beyond] = Way(other)
    return found


def window_of_same_bytes(model: Any, own: AHNConfig) -> int:
    """The window whose cache has as many bytes as that of the memory, once both are full."""
    ids = torch.zeros(1, own.budget + CHUNK, dtype=torch.long, device=model.device)
    sizes = {}
    for name, looking in (("window", ahn.memory_off(model)), ("memory", nullcontext())):
        with looking, torch.no_grad():
            cache = new_cache(model)
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            sizes[name] = cache_bytes(cache)
    return own.window + (sizes["memory"] - sizes["window"]) * own.budget // sizes["window"]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Facts found by length, and nats per token of the text beyond the budget, of each way."""
    tokenizer, text = load_tokenizer(arguments.base), Path(arguments.text).read_text()
    compared = ways(arguments.base, arguments.memory, arguments.dtype, arguments.device)
    own = AHNConfig.from_dict(compared["memory"].model.config.ahn_config)
    asked = {
        length: haystacks(
            tokenizer, text, length=length, budget=own.budget, count=count, seed=0, chat=True
        )
        for length, count in zip(arguments.lengths, arguments.haystacks)
    }
    ids = torch.tensor([tokenizer(text)["input_ids"]])[:, : arguments.gap]
    rows: dict[str, Any] = {}
    for name, way in compared.items():
        fits = [x for x in asked if way.most is None or x <= way.most]
        if name in ("clamp", "drop"):
            fits = [x for x in asked if x > _positions(way.model)]
        with way.looking():
            found = {n: [y for hay in asked[n] for y in facts_found(way.model, hay, CHUNK)]
                     for n in fits}  # fmt: skip
            losses = token_losses(way.model, ids, prefill_chunk_size=CHUNK)
        rows[name] = {
            "found": {str(n): [sum(x), len(x)] for n, x in found.items()},
            "nats": losses[own.budget - 1 :].mean().item(),
        }
        print(name, rows[name], flush=True)
    full, window = rows["full"]["nats"], rows["window"]["nats"]
    for row in rows.values():
        row["gap"] = (window - row["nats"]) / (window - full)
    return {
        "bytes": _bytes(compared["memory"], own),
        "wider": compared["wider"].model.config.ahn_config["window"],
        "ways": rows,
    }


def _bytes(way: Way, own: AHNConfig) -> int:
    ids = torch.zeros(1, own.budget + 1, dtype=torch.long, device=way.model.device)
    cache = new_cache(way.model)
    with torch.no_grad():
        way.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache_bytes(cache)


def _positions(model: Any) -> int:
    return model.config.get_text_config(decoder=True).max_position_embeddings


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--memory", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 7168, 16384, 65536])
    parser.add_argument("--haystacks", type=int, nargs="+", default=[8, 8, 8, 4, 2])
    parser.add_argument("--gap", type=int, default=8192, help="tokens of the text that are read")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    (Path(__file__).parent / "results" / "chat_recall").mkdir(parents=True, exist_ok=True)
    write_result(f"chat_recall/{arguments.name}", measure(arguments))


if __name__ == "__main__":
    main()
