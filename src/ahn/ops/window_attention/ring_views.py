"""Tokens in order that lie in several views, as those of a ring do; nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def num_tokens(views: Sequence[Tensor]) -> int:
    """Number of tokens in all views `[B, G, T_i, *]`."""
    return sum(view.shape[2] for view in views)


def token_slice(views: Sequence[Tensor], low: int, high: int) -> list[Tensor]:
    """Views of tokens `low` to `high` - 1, in order; an empty list where there are none."""
    chosen, first = [], 0
    for view in views:
        part = slice(max(low - first, 0), min(high - first, view.shape[2]))
        if part.start < part.stop:
            chosen.append(view[:, :, part])
        first += view.shape[2]
    return chosen
