"""A layer's slots: priorities, places, and pairs of a key and a value, as they are or as codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahn.ops.slots.choice import insert_one
from ahn.ops.slots.head_rows import HeadRows
from ahn.ops.slots.quantisation import dequantised, quantised

Stored = tuple[Tensor, ...]  # numbers as they are, or codes and scales; see `quantised`


def stored(x: Tensor, bits: int) -> Stored:
    """Keys or values `[..., K]` as slots of that many bits a number hold them."""
    return (x,) if bits == 16 else quantised(x, bits)


def loaded(x: Stored, bits: int, dtype: torch.dtype) -> Tensor:
    """The numbers `[..., K]` that `stored` made this of, in `dtype` where they were codes."""
    return x[0] if bits == 16 else dequantised(x[0], x[1], bits, dtype)


@dataclass(frozen=True)
class SlotBuffers:
    """What a layer's slots hold of each sequence, head after head; N slots in all.

    Attributes:
        priority: `[B, N]` float32; place: `[B, N]` int32, position + 1, of which 0 is empty.
        key, value: `[B, N, *]` each, see `stored`.
        rows: which of them are whose.
        bits: 16, 8 or 4 a number.
    """

    priority: Tensor
    place: Tensor
    key: Stored
    value: Stored
    rows: HeadRows
    bits: int

    def insert(self, key: Tensor, value: Tensor, priority: Tensor, place: Tensor) -> None:
        """Let one token of each row arrive, in place; see `insert_one`.

        Args:
            key, value: `[B, G, 1, K]`; priority: `[B, G]`; place: `[B or 1, 1]`.
        """
        new = (*stored(key, self.bits), *stored(value, self.bits))
        for run in self.rows.runs:
            held, places = (self.rows.of(run, x) for x in (self.priority, self.place))
            slot, takes = insert_one(held, places, priority[:, run.heads], place)
            for x, token in zip((*self.key, *self.value), new):
                _put(self.rows.of(run, x), slot, takes, token[:, run.heads])

    def pairs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, G, M, K]` as the softmax reads them, in `dtype` where quantised."""
        key, value = (self.rows.padded(loaded(x, self.bits, dtype)) for x in (self.key, self.value))
        return key, value


def _put(x: Tensor, slot: Tensor, takes: Tensor, new: Tensor) -> None:
    """`x[b, g, slot[b, g]] = new[b, g]` in rows `[B, G, M, *]`, where it takes that slot."""
    index = slot[..., None].expand_as(new)
    x.scatter_(2, index, torch.where(takes[..., None], new, x.gather(2, index)))
