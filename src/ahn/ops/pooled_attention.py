"""Exact attention over sinks, window and a pool of evicted tokens: the Compressive Transformer.

Evicted tokens are pooled, keys and values alike, `RATIO` to one entry: kernel and stride are the
compression rate (arXiv 1911.05507, section 3.2, max and mean pooling). The pool is first in, first
out, and one softmax is over pool, sinks and window. A group that is not complete yet is visible as
the pool of its tokens so far, so no evicted token is invisible while its group fills.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.ops.layout import repeat_heads
from ahn.ops.window_attention.reference import LARGEST_BLOCK, SMALLEST_BLOCK, visible

RATIO = 4  # tokens an entry, as in arXiv 2510.07318
POOLINGS = ("max", "avg")


def pool_slots(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Entries of a pool: as many as fit into the bytes of a memory's float32 state."""
    state = query.shape[1] * key.shape[-1] * value.shape[-1] * torch.float32.itemsize
    entry = key.shape[1] * (key.shape[-1] + value.shape[-1]) * key.element_size()
    return max(1, state // entry)


def pooled_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_key: Tensor,
    sink_value: Tensor,
    *,
    pool: Tensor | None,
    pooling: str,
    window: int,
    start: int | Tensor,
    scale: float | None = None,
    dropout: float = 0.0,
    sink_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`window_attention` over the pool as well; evicted tokens are added to the pool.

    Positions are those of `window_attention`. All but the last `window` columns are evicted in this
    call. A query sees what has been evicted by the time it enters, that is tokens at least `window`
    positions before it. Sinks and padding are never pooled.

    Args:
        query: `[B, H, C, K]`.
        key, value: `[B, G, T, *]`, C <= T <= C + window.
        sink_key, sink_value: `[B, G, S, *]`.
        pool: `[B, G, P, K + V]` from the call before, None for an empty one. The n-th evicted
            token, n from 0, belongs to group n // RATIO, whose entry is in slot group % P.
        pooling: one of `POOLINGS`.
        start, scale, dropout: see `window_attention`.
        sink_logits: None: this baseline does not know them.

    Returns:
        `[B, H, C, V]`, and the pool in the dtype of key.

    Raises:
        ValueError: `pooling` is none of `POOLINGS`, or there are sink logits.
    """
    if sink_logits is not None:
        raise ValueError("pooled_window_attention: expected no sink logits, got some")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")
    if pool is None:
        size = key.shape[-1] + value.shape[-1]
        pool = key.new_zeros(*key.shape[:2], pool_slots(query, key, value), size)
    first = torch.as_tensor(start, device=key.device).reshape(-1, 1) - sink_key.shape[2]
    before, outputs = key.shape[2] - query.shape[2], []
    for part in query.split(min(max(window, SMALLEST_BLOCK), LARGEST_BLOCK), dim=2):
        after = before + part.shape[2]
        evicted = slice(max(0, before - window), max(0, after - window))
        near = slice(max(0, before + 1 - window), after)
        order = first + torch.arange(evicted.start, evicted.stop, device=key.device)
        new = torch.cat([key[:, :, evicted], value[:, :, evicted]], -1)
        added = Added(_running(pool, new, order, pooling), order)
        pooled = torch.cat([pool, added.entries], 2).split([key.shape[-1], value.shape[-1]], -1)
        exact = visible(
            part.shape[2], near.start, after, sink_key.shape[2], window, start, key.device
        )
        mask = _with_entries(exact, _visible_entries(added, part.shape[2], pool.shape[2]))
        keys, values = (
            repeat_heads(torch.cat([entries, sinks, column[:, :, near]], 2), query.shape[1], dim=1)
            for entries, sinks, column in zip(pooled, (sink_key, sink_value), (key, value))
        )
        outputs.append(
            F.scaled_dot_product_attention(part, keys, values, mask, dropout, scale=scale)
        )
        pool, before = _updated(pool, added), after
    return torch.cat(outputs, 2), pool


class Added(NamedTuple):
    """Evicted tokens, in order.

    Attributes:
        entries: `[B, G, E, K + V]`, for each the pool of its group up to and including it.
        order: `[B or 1, E]`, number of tokens evicted before it; negative for sinks and padding.
    """

    entries: Tensor
    order: Tensor


def _with_entries(exact: Tensor, entries: Tensor) -> Tensor:
    """One mask `[B or 1, 1, Q, *]` of entries `[B or 1, Q, *]` and of the exact tokens."""
    rows = max(len(exact), len(entries))
    return torch.cat([x.expand(rows, -1, -1, -1) for x in (entries[:, None], exact)], -1)


def _running(pool: Tensor, new: Tensor, order: Tensor, pooling: str) -> Tensor:
    """The pool of each token's group up to and including it, `[B, G, E, K + V]`.

    It is rounded after every token, so it is bitwise the same however a sequence is cut into calls.
    """
    if not new.shape[2]:
        return new
    slot = order[:, :1].clamp(min=0) // RATIO % pool.shape[2]
    earlier = _chosen(pool, slot)
    phase, entries = (order % RATIO)[:, None, :, None], new
    for count in range(1, RATIO):
        last = torch.cat([earlier, entries[:, :, :-1]], 2)
        if pooling == "max":
            pooled = torch.maximum(last, new)
        else:
            wide = torch.promote_types(new.dtype, torch.float32)
            pooled = last.to(wide).lerp(new.to(wide), 1 / (count + 1)).to(new.dtype)
        entries = torch.where(phase == count, pooled, entries)
    return entries


def _visible_entries(added: Added, queries: int, slots: int) -> Tensor:
    """Which of [pool | added entries] the queries see, `[B or 1, Q, P + E]` bool.

    Each of the last E queries evicts one of the E tokens; earlier queries evict nothing and see no
    entry. A query sees the last P groups: that of its evicted token as it is, the others complete.
    """
    order, count = added.order, added.order.shape[1]
    reader = F.pad(order, (queries - count, 0), value=-1)[:, :, None]
    oldest = reader // RATIO - slots  # the newest group that has been overwritten
    written = order[:, :1].clamp(min=0) if count else order.new_zeros(1, 1)
    stored = _group_in_slot(-(-written // RATIO), slots, order.device)[:, None]
    is_stored = (stored >= 0) & (stored > oldest) & ((stored + 1) * RATIO <= written[:, None])
    entry = order[:, None]
    complete = (entry % RATIO == RATIO - 1) & (entry < reader) & (entry // RATIO > oldest)
    is_added = (entry >= 0) & (complete | (entry == reader))
    return torch.cat([is_stored & (reader >= 0), is_added], -1)


def _updated(pool: Tensor, added: Added) -> Tensor:
    """The pool after these tokens: each slot gets the last entry of its group."""
    order, count = added.order, added.order.shape[1]
    if not count:
        return pool
    begun = order[:, -1:].clamp(min=-1) // RATIO + 1
    group = _group_in_slot(begun, pool.shape[2], pool.device)
    last = (group + 1) * RATIO - 1 - order[:, :1]  # column of the group's last token
    is_new = (group >= 0) & (last >= 0)
    entries = _chosen(added.entries, last.clamp(0, count - 1))
    return torch.where(is_new[:, None, :, None], entries, pool)


def _group_in_slot(begun: Tensor, slots: int, device: torch.device) -> Tensor:
    """The last of the first `begun` groups `[B or 1, 1]` in each slot, `[B or 1, P]`; negative
    where there is none."""
    return begun - 1 - (begun - 1 - torch.arange(slots, device=device)) % slots


def _chosen(entries: Tensor, index: Tensor) -> Tensor:
    """`entries[b, :, index[b]]`, from an index `[B or 1, n]`."""
    index = index[:, None, :, None].expand(len(entries), entries.shape[1], -1, entries.shape[3])
    return entries.gather(2, index)
