"""Where a token lives in a layer's buffers `[B, *, S + W, *]`: sinks in front, the ring behind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.ops.wide_copy import widest_views

Pairs = list[tuple[Tensor, Tensor]]  # a buffer, and new tokens for it
Ranges = tuple[tuple[int, int], ...]  # (first, end) columns of the new tokens


def token_positions(
    first: int, length: int, padding: Tensor | None, device: torch.device
) -> Tensor:
    """Positions `[B or 1, length]` of the tokens from index `first` on.

    An index counts every column of the batch from 0; a position counts the real tokens of a row.
    So padding on the left has negative positions. This is the one conversion between the two.

    Args:
        padding: `[B]`, left-padding tokens of each row; None is none.
    """
    index = first + torch.arange(length, device=device)[None]
    return index if padding is None else index - padding.to(device)[:, None]


def ring_index(positions: Tensor, window: int, num_sinks: int) -> Tensor:
    """The row of the buffers that tokens at positions >= 0 live in."""
    ring = num_sinks + (positions - num_sinks).clamp(min=0) % window
    return torch.where(positions < num_sinks, positions, ring)


def ring_slices(first: int, length: int, window: int, num_sinks: int) -> list[slice]:
    """Rows of the buffers for `length` positions from `first` on, in order."""
    slices, end = [], first + length
    while first < end:
        row = first
        if first >= num_sinks:
            row = num_sinks + (first - num_sinks) % window
        size = min(end - first, num_sinks + window - row)
        slices.append(slice(row, row + size))
        first += size
    return slices


def with_rows(buffer: Tensor, rows: int) -> Tensor:
    """`[B, *, R, *]` with zeros behind its rows, so that there are so many of them."""
    missing = rows - buffer.shape[2]
    return F.pad(buffer, (0, 0, 0, missing)) if missing else buffer


def gather_rows(buffer: Tensor, index: Tensor) -> Tensor:
    """`buffer[b, :, index[b]]`, `[B, *, n, *]`, from an index `[B or 1, n]`."""
    if index.shape[0] == 1:
        return buffer.index_select(2, index[0])
    index = index[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3])
    return buffer.gather(2, index)


def put_rows(buffer: Tensor, index: Tensor, token: Tensor) -> None:
    """`buffer[b, :, index[b]] = token[b]`: one token a row `[B, *, 1, *]`, index `[B or 1]`."""
    if index.shape[0] == 1:
        buffer.index_copy_(2, index, token)
    else:
        rows = torch.arange(index.shape[0], device=index.device)
        buffer[rows, :, index] = token[:, :, 0]


def store_in_order(pairs: Pairs, columns: Ranges, seen: int, window: int, num_sinks: int) -> None:
    """Copy columns of new tokens `[B, *, C, *]` into buffers slice by slice, behind `seen` ones."""
    pairs = [(buffer, new) for buffer, new in (widest_views(*pair) for pair in pairs)]
    for first, end in columns:
        for rows in ring_slices(seen + first, end - first, window, num_sinks):
            size = rows.stop - rows.start
            for buffer, new in pairs:
                buffer[:, :, rows] = new[:, :, first : first + size]
            first += size


def store_by_row(
    pairs: Pairs, columns: Ranges, positions: Tensor, window: int, num_sinks: int
) -> None:
    """The same where rows differ, except padding and what is evicted; positions `[B, C]`."""
    index = torch.cat([torch.arange(*part, device=positions.device) for part in columns])
    positions = positions[:, index]
    recent = positions > positions[:, -1:] - window
    chosen = (positions >= 0) & (recent | (positions < num_sinks))
    rows, places = chosen.nonzero(as_tuple=True)
    targets = ring_index(positions[rows, places], window, num_sinks)
    for buffer, new in pairs:
        buffer[rows, :, targets] = new[rows, :, index[places]]
