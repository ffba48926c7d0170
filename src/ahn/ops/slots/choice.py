"""Which tokens stand in the slots of a key head: those of highest priority, of equals the older.

A token's priority is fixed when it is written. So the best M of A and B are the best M of (the best
M of A) and B, and the sets are the same token by token, in chunks and in one shot.

Letters: M slots of a head, E tokens that arrive in a call, oldest first; reader number e of the
call (counted from 0) comes with arrival e and sees it. Q readers and arrivals make a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # readers of a block
EMPTY = -torch.inf  # priority of an empty slot, of a sink and of padding


@dataclass(frozen=True)
class Choice:
    """What E arrivals do to the slots, block by block of Q readers.

    Candidates are numbered: the M slots as they lie, then the arrivals.

    Attributes:
        index: `[B, G, N, M]`, the candidates in the slots before each block, the best first.
        slot_end: `[B, G, N, M]`, the reader of the block by whom each is displaced: readers
            e < `slot_end` see it. 0 is an empty slot, Q one that stays.
        arrival_end: `[B, G, N, Q]`, the same for the arrivals of the block: readers j <= e <
            `arrival_end` see arrival j.
        kept: `[B, G, M]`, the candidates in the slots after all of them, the best first.
        filled: `[B, G, M]` bool, whether there is one.
    """

    index: Tensor
    slot_end: Tensor
    arrival_end: Tensor
    kept: Tensor
    filled: Tensor

    @property
    def block(self) -> int:
        """Readers of a block, Q; the last one may have fewer."""
        return self.arrival_end.shape[-1]


def choose_by_sorts(
    priority: Tensor, place: Tensor, arriving: Tensor, sizes: Tensor | None, block: int
) -> Choice:
    """`ahn.ops.slots.choose` in PyTorch: a sort a block."""
    slots = priority.shape[-1]
    priority, index = best_first(priority, place)
    held, indices = [priority], [index]
    new = F.pad(arriving, (0, -arriving.shape[-1] % block), value=EMPTY).unflatten(-1, (-1, block))
    number = torch.arange(slots, slots + block, device=index.device).expand(*new.shape[:2], -1)
    for first, arrivals in zip(range(0, arriving.shape[-1], block), new.unbind(2)):
        # Slots come first and are older: a stable sort keeps the older of equals in front.
        both = torch.cat([held[-1], arrivals], -1)
        best, order = both.sort(dim=-1, descending=True, stable=True)
        best, order = best[..., :slots], order[..., :slots]
        held.append(best if sizes is None else best.masked_fill(_beyond(sizes, slots), EMPTY))
        indices.append(torch.cat([indices[-1], number + first], -1).gather(-1, order))
    before = torch.stack(held[:-1], 2)
    size = (torch.full((1,), slots) if sizes is None else sizes).to(index.device)[:, None, None]
    return Choice(
        torch.stack(indices[:-1], 2),
        _slot_ends(before, new, size),
        _arrival_ends(before, new, size),
        indices[-1],
        held[-1] > EMPTY,
    )


def insert_one(
    priority: Tensor, place: Tensor, arriving: Tensor, new_place: Tensor
) -> tuple[Tensor, Tensor]:
    """Let one token of each row arrive, in place; static shapes, and nothing waits for a device.

    Args:
        priority, place: `[B, G, M]`, see `choose`; overwritten where the token is kept.
        arriving: `[B, G]`, its priority; `EMPTY` is never kept.
        new_place: `[B or 1, 1]`, its position + 1; it is younger than all that is kept.

    Returns:
        The slot `[B, G, 1]` that loses its token, and whether the new one takes it, `[B, G, 1]`.
    """
    held = priority.masked_fill(place == 0, EMPTY)
    lowest = held.amin(-1, keepdim=True)
    slot = torch.where(held == lowest, place, place.new_full((), -1)).argmax(-1, keepdim=True)
    takes = arriving[..., None] > lowest
    for buffer, new in (
        (priority, arriving[..., None]),
        (place, new_place[:, None].to(place.dtype)),
    ):
        buffer.scatter_(-1, slot, torch.where(takes, new, buffer.gather(-1, slot)))
    return slot, takes


def best_first(priority: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The slots `[B, G, M]` in order, and which they are: of equal priorities the older first."""
    priority = priority.masked_fill(place == 0, EMPTY)
    by_place = place.sort(dim=-1, stable=True).indices
    ordered = priority.gather(-1, by_place).sort(dim=-1, descending=True, stable=True)
    return ordered.values, by_place.gather(-1, ordered.indices)


def _beyond(sizes: Tensor, slots: int) -> Tensor:
    """Slots `[G, M]` that a head may not fill."""
    return torch.arange(slots, device=sizes.device) >= sizes[:, None]


def _slot_ends(held: Tensor, new: Tensor, size: Tensor) -> Tensor:
    """`Choice.slot_end`, from what is held before each block `[B, G, N, M]` and its arrivals.

    Slot k, the k-th best, is displaced by the arrival that is the (size - k)-th above it. So only
    the lowest Q of a head's slots can be.
    """
    block, slots = new.shape[-1], held.shape[-1]
    back = torch.arange(block, 0, -1, device=held.device)  # how many above it displace it
    rank = size - back  # [G or 1, 1, Q]
    low = held.gather(-1, rank.clamp(min=0).expand(*held.shape[:3], -1))
    above = (new[..., None, :] > low[..., None]).cumsum(-1, dtype=torch.int32)
    seen = (above < back[:, None]).sum(-1)
    # Ranks below 0 are no slots: their column is cut off.
    column = torch.where(rank < 0, slots, rank).expand_as(seen)
    end = seen.new_full((*held.shape[:3], slots + 1), block).scatter(-1, column, seen)
    return end[..., :slots].masked_fill(held == EMPTY, 0)


def _arrival_ends(held: Tensor, new: Tensor, size: Tensor) -> Tensor:
    """`Choice.arrival_end`: the first reader by whose time `size` candidates come before it."""
    # A slot is older than an arrival: of equals it comes before.
    ahead = torch.searchsorted(-held, (-new).contiguous(), right=True)
    i = torch.arange(new.shape[-1], device=new.device)
    better = new[..., None, :] > new[..., None]
    better |= (new[..., None, :] == new[..., None]) & (i < i[:, None])
    ahead = ahead[..., None] + better.cumsum(-1, dtype=torch.int32)
    return (ahead < size[..., None]).sum(-1).masked_fill(new == EMPTY, 0)
