"""Where a token lives in a layer's buffers `[B, *, S + W, *]`: sinks in front, the ring behind."""

from __future__ import annotations

import torch
from torch import Tensor


def slot_of(positions: Tensor, window: int, num_sinks: int) -> Tensor:
    """The slot of tokens at positions >= 0."""
    ring = num_sinks + (positions - num_sinks).clamp(min=0) % window
    return torch.where(positions < num_sinks, positions, ring)


def spans(first: int, length: int, window: int, num_sinks: int) -> list[slice]:
    """Slots of the tokens at `length` positions from `first` on, in order."""
    found, end = [], first + length
    while first < end:
        slot = first
        if first >= num_sinks:
            slot = num_sinks + (first - num_sinks) % window
        size = min(end - first, num_sinks + window - slot)
        found.append(slice(slot, slot + size))
        first += size
    return found


def gather_rows(buffer: Tensor, slots: Tensor) -> Tensor:
    """`buffer[b, :, slots[b]]`, `[B, *, n, *]`, from slots `[B or 1, n]`."""
    if slots.shape[0] == 1:
        return buffer.index_select(2, slots[0])
    index = slots[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3])
    return buffer.gather(2, index)


def put_rows(buffer: Tensor, slot: Tensor, token: Tensor) -> None:
    """`buffer[b, :, slot[b]] = token[b]`: one token a row `[B, *, 1, *]`, slots `[B or 1]`."""
    if slot.shape[0] == 1:
        buffer.index_copy_(2, slot, token)
    else:
        rows = torch.arange(slot.shape[0], device=slot.device)
        buffer[rows, :, slot] = token[:, :, 0]
