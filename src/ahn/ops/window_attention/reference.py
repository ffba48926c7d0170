"""Sinks + window attention by blocks of queries: any device, exact, never quadratic in length."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.ops.layout import repeat_heads
from ahn.ops.window_attention.exact_rows import ExactRows, FarRows, SeenRows, SlotRows

LARGEST_BLOCK = 1024
SMALLEST_BLOCK = 64
EXTRA = 8  # dimensions of a head beside its own, a multiple of what kernels align to


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
    exact_rows: ExactRows | SlotRows | None = None,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """See `ahn.ops.window_attention`; cost is O(C (S + window + block)), mask O(block) rows."""
    if sink_logits is not None and scale is None:
        scale = query.shape[-1] ** -0.5  # that of the head's own size
    heads, queries = query.shape[1:3]
    readers = queries if exact_rows is None else exact_rows.readers
    # A block reads window + block columns: a block of about the window wastes at most half.
    block = min(max(window, SMALLEST_BLOCK), LARGEST_BLOCK)
    if exact_rows is not None and exact_rows.block is not None:
        block = exact_rows.block
    # Keys are split once, at the blocks' borders: the gradient of a slice for every block would
    # be a zero tensor of the whole length each time.
    query_sizes = _piece_sizes(queries - readers, block) + _piece_sizes(readers, block)[::-1]
    sizes = _piece_sizes(key.shape[2] - queries, block) + query_sizes
    ends = list(accumulate(sizes))
    keys, values = key.split(sizes, dim=2), value.split(sizes, dim=2)
    outputs = []
    for index, part in enumerate(query.split(query_sizes, 2), len(sizes) - len(query_sizes)):
        first = ends[index] - part.shape[2]
        chosen = slice(bisect_right(ends, max(0, first - window + 1)), index + 1)
        low = ends[chosen.start] - sizes[chosen.start]
        mask = visible(
            part.shape[2], low, ends[index], sink_key.shape[2], window, start, query.device
        )
        seen_keys, seen_values = [sink_key, *keys[chosen]], [sink_value, *values[chosen]]
        reader = first - key.shape[2] + readers
        if exact_rows is not None and reader >= 0:
            rows = exact_rows.seen_by(reader, part.shape[2], sink_key)
            mask = with_exact_rows(mask, rows, heads)
            seen_keys, seen_values = [*seen_keys, rows.key], [*seen_values, rows.value]
            if rows.far is not None:
                scale = part.shape[-1] ** -0.5 if scale is None else scale
                part, seen_keys, mask = with_far_rows(part, seen_keys, mask, rows.far, heads)
                seen_values += [sink_value, rows.value]
        seen_key = repeat_heads(torch.cat(seen_keys, dim=2), heads, dim=1)
        seen_value = repeat_heads(torch.cat(seen_values, dim=2), heads, dim=1)
        if sink_logits is not None:
            part, seen_key = with_sink_logits(part, seen_key, sink_logits, scale)
            seen_value, mask = F.pad(seen_value, (0, 0, 0, 1)), F.pad(mask, (0, 1), value=True)
        outputs.append(
            F.scaled_dot_product_attention(
                part, seen_key, seen_value, attn_mask=mask, dropout_p=dropout, scale=scale
            )
        )
    return torch.cat(outputs, dim=2)


def with_sink_logits(
    query: Tensor, key: Tensor, sink_logits: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Queries, and keys with one more at the end, whose scaled score is a logit of each head `[H]`.

    It is a key of zeros, which alone has an entry in new dimensions of the heads. So the mask stays
    one of all heads, and whatever kernel runs takes it.
    """
    assert scale is not None, "of the head's own size"
    batch, heads, _, size = query.shape
    sink = key.new_zeros(batch, heads, 1, size + EXTRA)
    sink[..., size] = (sink_logits / scale).to(key.dtype)[:, None]
    key = torch.cat([F.pad(key, (0, EXTRA)), sink], 2)
    return F.pad(query, (0, EXTRA), value=1.0), key


def with_exact_rows(mask: Tensor, rows: SeenRows, heads: int) -> Tensor:
    """A mask `[B or 1, 1, Q, N]` and the rows that those queries see, `[B or 1, H, Q, N + M]`."""
    seen = repeat_heads(rows.visible.expand(-1, rows.key.shape[1], -1, -1), heads, dim=1)
    batch = max(len(mask), len(seen))
    return torch.cat([x.expand(batch, heads, -1, -1) for x in (mask, seen)], -1)


def with_far_rows(
    query: Tensor, keys: list[Tensor], mask: Tensor, far: FarRows, heads: int
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Query, keys and mask of the same softmax, in which far rows meet a query of their own.

    A head has both queries one after the other, and each key has zeros for the one it does not
    meet. A row that is far stands among the keys a second time, and is hidden where it stood.
    """
    size = query.shape[-1]
    keys = [*(F.pad(key, (0, size)) for key in keys), F.pad(far.key, (size, 0))]
    is_far = repeat_heads(far.visible.expand(-1, keys[0].shape[1], -1, -1), heads, dim=1)
    sinks = keys[0].shape[2]
    near = mask[..., :sinks].expand_as(is_far[..., :sinks])
    hidden = [near & ~is_far[..., :sinks], mask[..., sinks:]]
    return torch.cat([query, far.query], -1), keys, torch.cat([*hidden, is_far], -1)


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
