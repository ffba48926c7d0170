"""Launches of the kernels that choose; see `ahn.ops.slots.choose`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ahn.ops.slots.choice import EMPTY, Choice, best_first

TILE = 1024  # slots that a program moves in one go
WARPS = 8  # of a program: it compares all arrivals of a block with each other
SMALLEST = 16  # numbers that a kernel looks at in one go


def choose(
    priority: Tensor, place: Tensor, arriving: Tensor, sizes: Tensor | None, block: int
) -> Choice:
    """`ahn.ops.slots.choose` on a GPU.

    The sets of all blocks are made by one program a head, block after block. Who is seen by whom
    follows from them, for all blocks at once.
    """
    from ahn.ops.slots.choice_triton import ends_kernel, insert_blocks_kernel

    batch, groups, slots = priority.shape
    number, blocks = arriving.shape[-1], -(-arriving.shape[-1] // block)
    ordered, order = best_first(priority, place)
    held, index = (x.new_empty(batch, groups, blocks + 1, slots) for x in (ordered, order))
    held[:, :, 0], index[:, :, 0] = ordered, order
    slot_end = index.new_empty(batch, groups, blocks, slots, dtype=torch.int32)
    arrival_end = index.new_empty(batch, groups, blocks, block, dtype=torch.int32)
    if sizes is None:
        sizes = torch.full((groups,), slots, device=priority.device)
    arriving, sizes = arriving.contiguous(), sizes.to(torch.int32)
    root = _power(math.isqrt(slots - 1) + 1)
    given = (number, slots, blocks, block, groups)
    forms = {"BLOCK": _power(block), "TILE": min(TILE, _power(slots)), "ROOT": root}
    programs = batch * groups
    insert_blocks_kernel[(programs,)](
        arriving, sizes, held, index, *given, **forms, num_warps=WARPS
    )
    ends_kernel[(blocks, programs)](
        arriving, sizes, held, slot_end, arrival_end, *given, **forms, num_warps=WARPS
    )
    last = held[:, :, -1]
    return Choice(index[:, :, :-1], slot_end, arrival_end, index[:, :, -1], last > EMPTY)


def _power(n: int) -> int:
    """The next power of two that a kernel can take."""
    return max(SMALLEST, 1 << (n - 1).bit_length())
