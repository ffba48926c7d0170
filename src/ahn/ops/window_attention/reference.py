"""Sinks + window attention by blocks of queries: any device, exact, never quadratic in length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.ops.layout import repeat_heads

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
) -> Tensor:
    """See `ahn.ops.window_attention`; cost is O(C (S + window + block)), mask O(block) rows."""
    queries, keys = query.shape[2], key.shape[2]
    # A block reads window + block columns: a block of about the window wastes at most half.
    block = min(max(window, SMALLEST_BLOCK), LARGEST_BLOCK)
    outputs = []
    for first in range(0, queries, block):
        last = min(first + block, queries)
        low = max(0, keys - queries + first - window + 1)
        high = keys - queries + last
        mask = _visible(last - first, low, high, sink_key.shape[2], window, start, query.device)
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, first:last],
                _columns(sink_key, key[:, :, low:high], query.shape[1]),
                _columns(sink_value, value[:, :, low:high], query.shape[1]),
                attn_mask=mask,
                dropout_p=dropout,
                scale=scale,
            )
        )
    return torch.cat(outputs, dim=2)


def _columns(sinks: Tensor, window: Tensor, num_heads: int) -> Tensor:
    return repeat_heads(torch.cat([sinks, window], dim=2), num_heads, dim=1)


def _visible(
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
