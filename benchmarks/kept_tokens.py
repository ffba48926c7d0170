"""What the exact slots of the embedded model keep of a long text: the figure of docs/memory.md.

    python benchmarks/kept_tokens.py [--tokens 32768]

Reads held-out source code with 16 facts in it, in forms that no memory was trained on, and looks
which tokens are in the slots just before the facts are asked for. Writes results/kept_tokens.json
and docs/figures/kept_tokens.png.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from report import write_result

matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ahn import AHNCache, AHNConfig, embedded
from ahn.embedded.corpus import held_out_documents
from ahn.embedded.evaluate_recall import RecallMeasurement, form_groups, needle_rows
from ahn.generation import prefill
from ahn.memory.slots import PLACE

MEMORY = "Slots"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "kept_tokens.png"
TEXT, VALUE, LINE = "#9ecae1", "#d62728", "#404040"


@dataclass(frozen=True)
class Head:
    """A key head with slots: which places of the text it keeps, `[n]`."""

    layer: int
    head: int
    slots: int
    places: Tensor

    @property
    def name(self) -> str:
        return f"layer {self.layer}, head {self.head}"


def haystack(tokenizer: Any, tokens: int) -> tuple[Tensor, Tensor]:
    """A text `[1, T]` with facts, up to the first question, and where their values stand."""
    measurement = RecallMeasurement(lengths=(tokens,))
    encoded = [torch.tensor(tokenizer(text, verbose=False)["input_ids"])
               for _, text in held_out_documents()]  # fmt: skip
    ((ids, answers),) = needle_rows(
        tokenizer, encoded, form_groups()["unseen"], tokens, 1, measurement
    )
    values = [torch.arange(x.stated, x.stated + x.length) for x in answers]
    end = min(x.start for x in answers)
    return ids[None, :end], torch.cat(values)


def kept(model: Any, ids: Tensor) -> list[Head]:
    """What each key head with slots holds after the text."""
    cache, settings = AHNCache(model.config), AHNConfig.from_dict(model.config.ahn_config)
    prefill(model, ids, cache=cache)
    heads = []
    for index, layer in enumerate(cache.layers):
        sizes = settings.slots_of(index, layer.keys.shape[1])
        if PLACE in layer.states:
            for head, places in enumerate(layer.states[PLACE][0].split(sizes)):
                heads.append(Head(index, head, len(places), places[places > 0].sort().values - 1))
    return heads


def figures(heads: list[Head], values: Tensor, length: int) -> list[dict[str, Any]]:
    """Of each head its slots, and which share it keeps: of the text, its end, the values."""
    rows = []
    for head in heads:
        is_kept = torch.zeros(length, dtype=torch.bool)
        is_kept[head.places] = True
        rows.append(
            {
                "layer": head.layer,
                "head": head.head,
                "slots": head.slots,
                "oldest": head.places.min().item(),
                "of_text": is_kept.double().mean().item(),
                "of_last_quarter": is_kept[-length // 4 :].double().mean().item(),
                "of_values": is_kept[values].double().mean().item(),
            }
        )
    return rows


def draw(heads: list[Head], values: Tensor, length: int, gains: list[tuple[str, float]]) -> None:
    """The picture: what layers are worth, and how much of each stretch a head keeps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(1, 3))
    left.barh([name for name, _ in gains], [kl for _, kl in gains], color=TEXT, edgecolor=LINE)
    left.invert_yaxis()
    left.set_xlabel("KL divergence from full attention, nats a token")
    left.set_title("Seen whole: layer by layer", fontsize=10)
    for row, head in enumerate(heads):
        _draw_head(right, row, head, values, length)
    right.set_yticks(
        [i + 0.2 for i in range(len(heads))], [f"{x.name}: {x.slots:,}" for x in heads], fontsize=8
    )
    right.invert_yaxis()
    right.set_xlim(0, length)
    right.set_xlabel("position in the text; red: kept tokens of the facts' values")
    right.set_title("Height: share of the text that is kept", fontsize=10)
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=110)


def _draw_head(
    ax: Axes, row: int, head: Head, values: Tensor, length: int, bins: int = 256
) -> None:
    counts = torch.histc(head.places.float(), bins, 0, length) / (length / bins)
    x = torch.linspace(0, length, bins + 1)[:-1]
    ax.bar(x, -0.8 * counts, width=length / bins, bottom=row + 0.4, align="edge", color=TEXT)
    found = values[torch.isin(values, head.places)]
    ax.plot(found, torch.full((len(found),), row + 0.45), "|", color=VALUE, markersize=5)


def main() -> None:
    """Command line: read, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32768, help="length of the text")
    tokens = parser.parse_args().tokens
    model, tokenizer = embedded.load(MEMORY)
    ids, values = haystack(tokenizer, tokens)
    heads = kept(model, ids)
    training = json.loads((embedded.MEMORIES / MEMORY / "training.json").read_text())
    gains = [(("the " if x == "window" else "+ ") + x, kl) for x, kl in training["shares_kl"]]
    draw(heads, values, ids.shape[1], gains)
    rows = figures(heads, values, ids.shape[1])
    write_result("kept_tokens", {"memory": MEMORY, "tokens": ids.shape[1], "heads": rows})


if __name__ == "__main__":
    main()
