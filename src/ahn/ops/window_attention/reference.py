"""Sinks + window attention by blocks of queries: any device, exact, never quadratic in length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.ops.layout import repeat_heads
from ahn.ops.window_attention.exact_rows import ExactRows

LARGEST_BLOCK = 1024
SMALLEST_BLOCK = 64


def blocked_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int | Tensor,
    scale: float | None,
    dropout: float,
    exact_rows: ExactRows | None = None,
) -> Tensor:
    """See `ahn.ops.window_attention`; cost is O(C (S + window + block)), mask O(block) rows."""
    heads, queries = query.shape[1:3]
    # A block reads window + block columns: a block of about the window wastes at most half.
    block = min(max(window, SMALLEST_BLOCK), LARGEST_BLOCK)
    # Keys are split once, at the blocks' borders: the gradient of a slice for every block would
    # be a zero tensor of the whole length each time.
    sizes = _piece_sizes(key.shape[2] - queries, block) + _piece_sizes(queries, block)[::-1]
    keys, values = key.split(sizes, dim=2), value.split(sizes, dim=2)
    before = -(-(window - 1) // block)
    blocks = query.split(block, dim=2)
    outputs: list[Tensor] = []
    for index, part in enumerate(blocks, start=len(sizes) - len(blocks)):
        chosen = slice(max(0, index - before), index + 1)
        low, high = sum(sizes[: chosen.start]), sum(sizes[: chosen.stop])
        mask = visible(part.shape[2], low, high, sink_key.shape[2], window, start, query.device)
        seen_keys, seen_values = [sink_key, *keys[chosen]], [sink_value, *values[chosen]]
        if exact_rows is not None:
            first = sum(x.shape[2] for x in outputs) - queries + exact_rows.readers
            mask = with_exact_rows(mask, exact_rows, heads, first)
            seen_keys, seen_values = [*seen_keys, exact_rows.key], [*seen_values, exact_rows.value]
        outputs.append(
            F.scaled_dot_product_attention(
                part,
                repeat_heads(torch.cat(seen_keys, dim=2), heads, dim=1),
                repeat_heads(torch.cat(seen_values, dim=2), heads, dim=1),
                attn_mask=mask,
                dropout_p=dropout,
                scale=scale,
            )
        )
    return torch.cat(outputs, dim=2)


def with_exact_rows(mask: Tensor, exact_rows: ExactRows, heads: int, skipped: int) -> Tensor:
    """A mask `[B or 1, 1, Q, N]` and the rows that those queries see, `[B or 1, H, Q, N + M]`."""
    rows = exact_rows.visible(mask.shape[2], skipped)
    rows = repeat_heads(rows.expand(-1, exact_rows.key.shape[1], -1, -1), heads, dim=1)
    batch = max(len(mask), len(rows))
    return torch.cat([x.expand(batch, heads, -1, -1) for x in (mask, rows)], -1)


def _piece_sizes(length: int, block: int) -> list[int]:
    """Sizes that sum to `length`: the rest, then whole blocks."""
    rest = length % block
    return ([rest] if rest else []) + [block] * (length // block)


def visible(
    queries: int,
    low: int,
    high: int,
    num_sinks: int,
    window: int,
    start: int | Tensor,
    device: torch.device,
) -> Tensor:
    """Which of [sinks | columns low to high] the last queries see: `[B or 1, 1, Q, N]`."""
    first = start.to(device) if isinstance(start, Tensor) else torch.tensor([start], device=device)
    position = first[:, None] + torch.arange(low, high, device=device)
    reader = position[:, -queries:, None]
    sinks = torch.arange(num_sinks, device=device) <= reader
    position = position[:, None, :]
    near = (position <= reader) & (reader - position < window) & (position >= num_sinks)
    visible = torch.cat([sinks.expand(near.shape[0], -1, -1), near], dim=-1)
    # A padding query sees nothing; softmax over nothing is NaN, so let it see everything.
    return (visible | ~visible.any(-1, keepdim=True))[:, None]
