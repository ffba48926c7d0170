"""Tokens in order that lie in several tensors, as those of a ring do: no copy of the whole."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def count(pieces: Sequence[Tensor]) -> int:
    """Tokens in all pieces `[B, G, T_i, *]`."""
    return sum(piece.shape[2] for piece in pieces)


def columns(pieces: Sequence[Tensor], low: int, high: int) -> list[Tensor]:
    """Views of tokens `low` to `high`, in order; none where there are none."""
    found, first = [], 0
    for piece in pieces:
        chosen = slice(max(low - first, 0), min(high - first, piece.shape[2]))
        if chosen.start < chosen.stop:
            found.append(piece[:, :, chosen])
        first += piece.shape[2]
    return found
