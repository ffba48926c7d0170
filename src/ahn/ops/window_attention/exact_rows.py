"""Pairs that a memory keeps exactly: they join the softmax over sinks and window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ahn.ops.slots import Choice, SlotBuffers

Pick = Callable[[Tensor], Tensor]  # chooses rows `[B, G, M, ...]` of `[B, G, N, ...]`


class FarRows(NamedTuple):
    """Sinks, then rows, that a block of Q queries sees otherwise; their values are the same.

    Attributes:
        query: `[B, H, Q, K]`; key: `[B, G, S + M, K]`.
        visible: `[B, G, Q, S + M]` bool, which query sees which this way, and not the other.
    """

    query: Tensor
    key: Tensor
    visible: Tensor


class SeenRows(NamedTuple):
    """What a block of Q queries sees: keys and values `[B, G, M, *]`, and which query sees which
    row, `[B or 1, G or 1, Q, M]` bool. `far` are those that stand too far back; None has none."""

    key: Tensor
    value: Tensor
    visible: Tensor
    far: FarRows | None = None


@dataclass(frozen=True)
class Turned:
    """How rows are read that stand too far back: as if all of them stood at one distance.

    Attributes:
        query: `[B, H, E, K]`, of the readers, at that distance from position 0.
        key: `[B, G, N, K]`, of the rows, turned back to position 0.
        sinks: turns back the keys `[B, G, S, K]` of the tokens at positions 0 to S - 1.
        sink_limit: `[B or 1, 1, S]`, the first reader for whom each of these is too far back.
    """

    query: Tensor
    key: Tensor
    sinks: Callable[[Tensor], Tensor]
    sink_limit: Tensor


@dataclass(frozen=True)
class Reach:
    """How far back rows are read as they are.

    Attributes:
        limit: `[B, G, N]`, the first reader for whom a row is too far back.
        turned: how it is then read; None leaves it out.
    """

    limit: Tensor
    turned: Turned | None = None

    def seen(self, rows: SeenRows, first: int, pick: Pick, sink_key: Tensor) -> SeenRows:
        """What readers from `first` on see of the picked rows, of which they may see `rows`."""
        queries = rows.visible.shape[2]
        reader = first + torch.arange(queries, device=self.limit.device)[:, None]
        is_far = reader >= pick(self.limit)[..., None, :]
        near = rows._replace(visible=rows.visible & ~is_far)
        if self.turned is None:
            return near
        sinks = (reader >= self.turned.sink_limit[..., None, :]).expand(*is_far.shape[:2], -1, -1)
        far = FarRows(
            self.turned.query[:, :, first : first + queries],
            torch.cat([self.turned.sinks(sink_key), pick(self.turned.key)], 2),
            torch.cat([sinks, rows.visible & is_far], -1),
        )
        return near._replace(far=far)


@dataclass(frozen=True)
class ExactRows:
    """Keys and values that the last E queries of a call see beside sinks and window.

    Query e of these E, counted from 0, sees row m where `first <= e < end`.

    Attributes:
        key, value: `[B, G, M, *]`, with the positions they had.
        first, end: `[B or 1, G or 1, M]` integers; a row with `end <= 0` is empty.
        readers: E, the number of last queries that see any.
        position: `[B, G, M]`, of the rows' tokens, where they may be read at another distance.
        reach: how far back they are read as they are; None is any distance.
    """

    key: Tensor
    value: Tensor
    first: Tensor
    end: Tensor
    readers: int
    position: Tensor | None = None
    reach: Reach | None = None

    block: int | None = None  # readers that may be asked for at once; None: any

    @classmethod
    def of_slots(cls, slots: SlotBuffers, dtype: torch.dtype) -> ExactRows:
        """What stands in slots, for one reader."""
        place = slots.rows.padded(slots.place)
        return cls(*slots.pairs(dtype), torch.zeros_like(place), place, 1, place - 1)

    def seen_by(self, first: int, queries: int, sink_key: Tensor) -> SeenRows:
        """The rows of readers `first` to `first + queries` - 1.

        Args:
            sink_key: `[B, G, S, K]`, which may be too far back as well.
        """
        reader = first + torch.arange(queries, device=self.first.device)[:, None]
        visible = (self.first[..., None, :] <= reader) & (reader < self.end[..., None, :])
        rows = SeenRows(self.key, self.value, visible)
        return rows if self.reach is None else self.reach.seen(rows, first, lambda x: x, sink_key)


@dataclass(frozen=True)
class SlotRows:
    """Exact rows that change from block to block of readers: the slots before it, and arrivals.

    A block of Q readers looks at M + Q rows, however many arrive in the call.

    Attributes:
        key, value: `[B, G, M + E, *]`, the candidates of `choice`.
        choice: which of them each reader sees.
        readers: E, the number of last queries of the call, and of arrivals.
        held: slots that may be filled before the call, at most M.
        position, reach: see `ExactRows`.
    """

    key: Tensor
    value: Tensor
    choice: Choice
    readers: int
    held: int
    position: Tensor | None = None
    reach: Reach | None = None

    @property
    def block(self) -> int:
        """Readers that may be asked for at once, from a multiple of it on."""
        return self.choice.block

    def seen_by(self, first: int, queries: int, sink_key: Tensor) -> SeenRows:
        """See `ExactRows.seen_by`; the queries of one block."""
        number, slots = first // self.block, self.choice.index.shape[-1]
        most = min(slots, self.held + first)  # the best come first, so the rest is empty
        index = self.choice.index[:, :, number, :most]
        arrivals = slice(slots + first, slots + first + queries)
        reader = torch.arange(queries, device=index.device)[:, None]
        slot_end = self.choice.slot_end[:, :, number, None, :most]
        arrival_end = self.choice.arrival_end[:, :, number, None, :queries]
        visible = [reader < slot_end, (reader >= reader.T) & (reader < arrival_end)]

        def pick(x: Tensor) -> Tensor:
            return torch.cat([_rows(x, index), x[:, :, arrivals]], 2)

        rows = SeenRows(pick(self.key), pick(self.value), torch.cat(visible, -1))
        return rows if self.reach is None else self.reach.seen(rows, first, pick, sink_key)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """`x[b, g, index[b, g]]`, `[B, G, n, ...]`, from an index `[B, G, n]`."""
    if x.ndim > 3:
        index = index[..., None].expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, index)
