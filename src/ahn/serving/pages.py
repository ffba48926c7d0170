"""Pages of a paged cache: rows of tokens beside states, so one page size has to fit both."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

BLOCK_UNIT = 32  # tokens; blocks of engines are multiples of it


@dataclass(frozen=True)
class RowLayout:
    """What a page holds of one token: key, value and raw gates, beside each other, for each head.

    The gates are those of the query heads that share the key head. So they age, are freed and are
    found again together with their token. All have the cell's dtype.

    Attributes:
        heads, groups: query heads H and key-value heads G.
        head_dim: size of keys and values, K.
        num_gates: of each query head, n.
    """

    heads: int
    groups: int
    head_dim: int
    num_gates: int

    @property
    def gates(self) -> int:
        """Numbers beside a pair."""
        return self.heads // self.groups * self.num_gates

    @property
    def width(self) -> int:
        """Numbers of one token and key head."""
        return 2 * self.head_dim + self.gates

    def pack(self, key: Tensor, value: Tensor, gates: Tensor) -> Tensor:
        """Rows `[T, G, width]` of keys and values `[T, G, K]` and raw gates `[T, H, n]`."""
        return torch.cat([key, value, gates.reshape(len(key), self.groups, self.gates)], -1)

    def unpack(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values `[T, G, K]` and raw gates `[T, H, n]` of rows."""
        key, value, gates = rows.split([self.head_dim, self.head_dim, self.gates], -1)
        return key, value, gates.reshape(len(rows), self.heads, self.num_gates)


@dataclass(frozen=True)
class Page:
    """One page, which holds the rows of `block` tokens of a layer, or one of its states.

    Attributes:
        block: tokens.
        size: bytes.
    """

    block: int
    size: int

    @classmethod
    def fitting(cls, token_bytes: int, state_bytes: int) -> Page:
        """The smallest page of whole `BLOCK_UNIT`s that a state fits into."""
        block = BLOCK_UNIT * max(1, -(-state_bytes // (token_bytes * BLOCK_UNIT)))
        return cls(block, block * token_bytes)

    @classmethod
    def of(cls, memory: Any, heads: int, groups: int, head_dim: int, number: int) -> Page:
        """The page of a layer with these heads.

        Args:
            memory: class of its cell.
            number: bytes of one number of a key or value.
        """
        layout = RowLayout(heads, groups, head_dim, memory.num_gates)
        specs = memory.state_specs(heads, groups, head_dim).values()
        state = sum(prod(spec.shape) * (spec.dtype or torch.float32).itemsize for spec in specs)
        return cls.fitting(groups * layout.width * number, state)

    def window_blocks(self, window: int, num_sinks: int, step: int) -> int:
        """The most blocks that sinks and window of one request hold in a step of `step` tokens.

        The token that leaves the window is read in the step that it leaves in, so it is held too.
        """
        return -(-(window + step) // self.block) + 1 + -(-num_sinks // self.block)


def write_rows(pages: Tensor, rows: Tensor, slots: Tensor) -> None:
    """Store rows `[T, G, width]` in pages `[N, G, block, width]`.

    Args:
        slots: `[T]`, a token's block times `block`, plus its place in the block.
    """
    block = pages.shape[2]
    pages[slots // block, :, slots % block] = rows


def read_rows(pages: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """Rows `[n, G, width]` of the tokens of one request at positions `[n]`.

    Args:
        table: the request's blocks in order; those that are freed hold no position that is asked.
    """
    block = pages.shape[2]
    return pages[table[positions // block].long(), :, positions % block]
