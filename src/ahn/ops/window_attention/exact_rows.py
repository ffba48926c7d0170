"""Pairs that a memory keeps exactly: they join the softmax over sinks and window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExactRows:
    """Keys and values that the last E queries of a call see beside sinks and window.

    Query e of these E, counted from 0, sees row m where `first <= e < end`.

    Attributes:
        key, value: `[B, G, M, *]`, with the positions they had.
        first, end: `[B or 1, G or 1, M]` integers; a row with `end <= 0` is empty.
        readers: E, the number of last queries that see any.
    """

    key: Tensor
    value: Tensor
    first: Tensor
    end: Tensor
    readers: int

    def visible(self, queries: int, skipped: int = 0) -> Tensor:
        """Which rows a block of queries sees, `[B or 1, G or 1, queries, M]` bool.

        Args:
            skipped: queries of the call before this block, of those that are no readers or more.
        """
        reader = torch.arange(queries, device=self.first.device)[:, None] + skipped
        first, end = self.first[..., None, :], self.end[..., None, :]
        return (first <= reader) & (reader < end) & (reader >= 0)
