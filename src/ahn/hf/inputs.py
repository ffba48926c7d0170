"""What a forward's mask and positions say: padding on the left, documents packed into rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ahn.layer.cache import AHNCache


def row_padding(
    mask: Any, cache: AHNCache | None, seen: int, length: int
) -> tuple[Tensor | None, int]:
    """Left-padding tokens of each row `[B]`, and the most of any row.

    The cache knows them once every row has begun: decoding then looks at no mask. Padding on the
    right changes no real token, so it passes where nothing is cached; elsewhere: ValueError.
    """
    known, largest = None, 0
    if cache is not None and seen:
        layer = cache.memory_layers[0]
        known, largest = layer.padding, layer.max_padding
    begun = seen > largest
    if mask is None or (begun and length == 1):
        return known, largest
    real = _check_mask(mask, seen + length)[:, -length:]
    padding = left_padding(real, known, seen, right_allowed=cache is None)
    largest = int(padding.max())
    return (padding, largest) if largest else (None, 0)


def left_padding(
    real: Tensor, known: Tensor | None, seen: int, right_allowed: bool = False
) -> Tensor:
    """Left padding of each row `[B]` after `seen` tokens and new ones, `real` `[B, C]` bool.

    Raises ValueError where padding follows a real token.
    """
    known = torch.zeros_like(real[:, 0], dtype=torch.long) if known is None else known
    known = known.to(real.device)
    begun = known < seen
    left = (~real).cumprod(1).bool() & ~begun[:, None]
    allowed = left | real
    if right_allowed:
        allowed |= (~real).flip(1).cumprod(1).bool().flip(1)
    if not allowed.all():
        raise ValueError("attention_mask: expected left padding, got padding after real tokens")
    return known + left.sum(1)


def _check_mask(mask: Any, length: int) -> Tensor:
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        kind = f"{mask.ndim} dimensions" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask: expected [batch, length], got {kind}")
    if mask.shape[1] != length:
        raise ValueError(f"attention_mask: expected {length} columns, got {mask.shape[1]}")
    return mask.bool()


def packed_documents(
    positions: Tensor | None, batch: int
) -> tuple[tuple[tuple[int, int], ...], ...] | None:
    """Documents of packed rows, where `position_ids` start again; None where nothing is packed."""
    if positions is None or positions.ndim != 2:
        return None
    starts = (positions.diff(dim=1) != 1).expand(batch, -1).cpu()
    if not starts.any():
        return None
    rows = []
    for row in starts:
        cuts = [0, *(row.nonzero().flatten() + 1).tolist(), positions.shape[1]]
        rows.append(tuple(pairwise(cuts)))
    return tuple(rows)
