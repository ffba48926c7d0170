"""Triton kernels of the slots' choice; see `ahn.ops.slots.choose` for the contract.

Shapes: B rows, G key heads, M slots, E arrivals in N blocks of `block`. The slots before each block
lie best first in `held`; ROOT^2 is at least M.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _arrivals(arriving, n, j, number, block):
    """Priorities of the arrivals j of block n; -inf where there is none."""
    is_new = (j < block) & (n * block + j < number)
    return tl.load(arriving + n * block + j, is_new, -float("inf"))


@triton.jit
def _slots_ahead(held, a, M, ROOT: tl.constexpr):
    """How many slots come before each arrival of priority a: they are older, so equals do.

    Every ROOT-th slot says in which part of the slots the last of them is, and then that part.
    """
    i = tl.arange(0, ROOT)
    first = tl.load(held + i * ROOT, i * ROOT < M, -float("inf"))
    parts = tl.sum(((first[None, :] >= a[:, None]) & (i * ROOT < M)[None, :]).to(tl.int32), 1)
    start = tl.maximum(parts - 1, 0) * ROOT
    k = start[:, None] + i[None, :]
    part = tl.load(held + k, k < M, -float("inf"))
    return start + tl.sum(((part >= a[:, None]) & (k < M)).to(tl.int32), 1)


@triton.jit
def _better(a, j):
    """Which arrival, in columns, comes before which, in rows; of equals the older."""
    equal = (a[None, :] == a[:, None]) & (j[None, :] < j[:, None])
    return ((a[None, :] > a[:, None]) | equal).to(tl.int32)


@triton.jit
def insert_blocks_kernel(
    arriving,  # [B, G, E] float32
    sizes,  # [G] int32, slots that a head may fill
    held,  # [B, G, N + 1, M] float32, priorities before each block; the first are given
    index,  # [B, G, N + 1, M] int64, candidates before each block; the first are given
    number, M, N, block, G,
    BLOCK: tl.constexpr, TILE: tl.constexpr, ROOT: tl.constexpr,
):  # fmt: skip
    """Merge block after block of arrivals into a head's slots, and cut off those beyond its size.

    An arrival comes behind the slots ahead of it and the better arrivals, and a slot moves back by
    the arrivals that come before it: a running sum over their histogram.
    """
    head = tl.program_id(0).to(tl.int64)
    size = tl.load(sizes + head % G)
    arriving += head * number
    held += head * (N + 1) * M
    index += head * (N + 1) * M
    j = tl.arange(0, BLOCK)
    for n in range(N):
        tl.debug_barrier()  # the slots before this block have been stored by all warps
        a = _arrivals(arriving, n, j, number, block)
        ahead = _slots_ahead(held, a, M, ROOT)
        rank = ahead + tl.sum(_better(a, j), 1)
        arrives = a > -float("inf")
        tl.store(held + M + rank, a, arrives & (rank < size))
        candidate = (M + n * block + j).to(tl.int64)
        tl.store(index + M + rank, candidate, arrives & (rank < size))
        before = 0
        for low in range(0, M, TILE):
            k = low + tl.arange(0, TILE)
            p = tl.load(held + k, k < M, -float("inf"))
            i = tl.load(index + k, k < M, 0)
            here = arrives & (ahead >= low) & (ahead < low + TILE)
            count = tl.histogram(tl.where(here, ahead - low, 0), TILE, here)
            moved = k + before + tl.cumsum(count, 0)
            before += tl.sum(count, 0)
            stays = (k < M) & (moved < size)
            tl.store(held + M + moved, p, stays)
            tl.store(index + M + moved, i, stays)
            beyond = (k >= size) & (k < M)
            tl.store(held + M + k, -float("inf"), beyond)
            tl.store(index + M + k, i, beyond)
        held += M
        index += M


@triton.jit
def ends_kernel(
    arriving,  # [B, G, E] float32
    sizes,  # [G] int32
    held,  # [B, G, N + 1, M] float32
    slot_end,  # [B, G, N, M] int32, out
    arrival_end,  # [B, G, N, block] int32, out
    number, M, N, block, G,
    BLOCK: tl.constexpr, TILE: tl.constexpr, ROOT: tl.constexpr,
):  # fmt: skip
    """By which reader of a block its slots and arrivals are displaced: see `Choice`."""
    n, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    size = tl.load(sizes + head % G)
    held += (head * (N + 1) + n) * M
    slot_end += (head * N + n) * M
    arrival_end += (head * N + n) * block
    j = tl.arange(0, BLOCK)
    a = _arrivals(arriving + head * number, n, j, number, block)
    is_reader = (j < block)[None, :]
    ahead = _slots_ahead(held, a, M, ROOT)[:, None] + tl.cumsum(_better(a, j), 1)
    end = tl.sum(((ahead < size) & is_reader).to(tl.int32), 1)
    tl.store(arrival_end + j, tl.where(a == -float("inf"), 0, end), j < block)
    # The k-th best slot is displaced by the (size - k)-th arrival above it: the lowest ones alone.
    back = block - j
    rank = size - back
    is_slot = (rank >= 0) & (j < block)
    p = tl.load(held + rank, is_slot, -float("inf"))
    above = tl.cumsum((a[None, :] > p[:, None]).to(tl.int32), 1)
    end = tl.sum(((above < back[:, None]) & is_reader).to(tl.int32), 1)
    tl.store(slot_end + rank, tl.where(p == -float("inf"), 0, end), is_slot)
    for low in range(0, M, TILE):
        k = low + tl.arange(0, TILE)
        priority = tl.load(held + k, k < M, -float("inf"))
        others = (k < M) & ((k < size - block) | (k >= size))
        tl.store(slot_end + k, tl.where(priority == -float("inf"), 0, block), others)
