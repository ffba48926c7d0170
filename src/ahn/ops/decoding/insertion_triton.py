"""Triton kernels that put an evicted token into slots; see `ahn.ops.decoding.insertion`.

Shapes: B rows, G key heads, R rows of the ring, N slots of a sequence, K the size of a head. SHARED
numbers have one scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROUND: tl.constexpr = tl.constexpr(12582912.0)  # 1.5 * 2^23: added and taken away it rounds


@triton.jit
def _code(x, scale, OFFSET: tl.constexpr):
    """See `ahn.ops.slots.quantised`; of two equally near codes the even one."""
    code = (tl.div_rn(x, scale) + ROUND) - ROUND
    code = tl.minimum(tl.maximum(code, 1.0 - OFFSET), OFFSET - 1.0)
    return (code + OFFSET).to(tl.int32)


@triton.jit
def _store_token(
    source, target, scales,
    DIM: tl.constexpr, PADDED: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr,
    SCALES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """K numbers at source, as they are, or as codes and scales."""
    if BITS == 16:
        i = tl.arange(0, PADDED)
        tl.store(target + i, tl.load(source + i, i < DIM, 0.0), i < DIM)
    else:
        OFFSET: tl.constexpr = 2 ** (BITS - 1)
        n, c = tl.arange(0, SCALES), tl.arange(0, HALF)
        i = n[:, None] * SHARED + 2 * c[None, :]  # the first of two numbers
        mask = (n * SHARED < DIM)[:, None] & (2 * c < SHARED)[None, :]
        first = tl.load(source + i, mask, 0.0).to(tl.float32)
        second = tl.load(source + i + 1, mask, 0.0).to(tl.float32)
        scale = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), 1)
        scale = tl.div_rn(scale, tl.full((SCALES,), OFFSET - 1.0, tl.float32))
        scale = tl.minimum(tl.maximum(scale, 2.0**-24), 65504.0).to(tl.float16)
        tl.store(scales + n, scale, n * SHARED < DIM)
        exact = tl.broadcast_to(scale.to(tl.float32)[:, None], (SCALES, HALF))
        first, second = _code(first, exact, OFFSET), _code(second, exact, OFFSET)
        if BITS == 8:
            tl.store(target + i, first.to(tl.uint8), mask)
            tl.store(target + i + 1, second.to(tl.uint8), mask)
        else:
            tl.store(target + i // 2, (first | (second << 4)).to(tl.uint8), mask)


@triton.jit
def _victim(priority, place, size, TILE: tl.constexpr):
    """The slot of lowest priority, of equals the youngest, and its priority; an empty one first."""
    k = tl.arange(0, TILE)
    low = tl.full((TILE,), float("inf"), tl.float32)
    young = tl.full((TILE,), -1, tl.int32)
    at = tl.zeros((TILE,), tl.int32)
    for n in range(0, size, TILE):
        is_slot = n + k < size
        b_place = tl.load(place + n + k, is_slot, -1)
        p = tl.load(priority + n + k, is_slot, float("inf"))
        p = tl.where(b_place == 0, -float("inf"), p)
        is_next = (p < low) | ((p == low) & (b_place > young))
        low, young = tl.where(is_next, p, low), tl.where(is_next, b_place, young)
        at = tl.where(is_next, n + k, at)
    lowest = tl.min(low, 0)
    youngest = tl.max(tl.where(low == lowest, young, -1), 0)
    chosen = (low == lowest) & (young == youngest)
    return tl.min(tl.where(chosen, at, 2147483647), 0), lowest


@triton.jit
def _insert(
    program, keys, values, scores, rate, first, priority, place, slot_key, slot_value, key_scale,
    value_scale, total, ring_index, write_mask, position, offset, row_stride,
    G: tl.constexpr, R: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, BITS: tl.constexpr,
    SHARED: tl.constexpr, SCALES: tl.constexpr, HALF: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The leaving token of one row and key head."""
    row, group = program // G, program % G
    start, end = tl.load(first + group), tl.load(first + group + 1)
    index = tl.load(ring_index + row * row_stride).to(tl.int64)
    own = tl.load(position + row * row_stride) + offset
    token = (row * G + group).to(tl.int64) * R + index
    aged = tl.load(rate + group).to(tl.float32) * own.to(tl.float32)
    new = tl.load(scores + token).to(tl.float32) + tl.div_rn(aged, 1000.0)
    begin = row.to(tl.int64) * total + start
    slot, lowest = _victim(priority + begin, place + begin, end - start, TILE)
    if (tl.load(write_mask + row * row_stride) != 0) & (new > lowest):
        at = begin + slot
        tl.store(priority + at, new)
        tl.store(place + at, (own + 1).to(tl.int32))
        WIDTH: tl.constexpr = DIM if BITS == 16 else DIM * BITS // 8
        NUMBER: tl.constexpr = DIM // SHARED
        _store_token(
            keys + token * DIM, slot_key + at * WIDTH, key_scale + at * NUMBER,
            DIM, PADDED, BITS, SHARED, SCALES, HALF,
        )  # fmt: skip
        _store_token(
            values + token * DIM, slot_value + at * WIDTH, value_scale + at * NUMBER,
            DIM, PADDED, BITS, SHARED, SCALES, HALF,
        )  # fmt: skip


@triton.jit
def insert_in_layer_kernel(
    keys, values,  # [B, G, R, K]
    scores,  # [B, G, R]
    rate,  # [G]
    first,  # [G + 1] int32, the first slot of each head, and N
    priority,  # [B, N] float32, in place
    place,  # [B, N] int32, in place; what follows too
    slot_key, slot_value,  # [B, N, *]
    key_scale, value_scale,  # [B, N, K / SHARED] float16; not looked at with 16 bits
    total, ring_index, write_mask, position, offset, row_stride,
    G: tl.constexpr, R: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, BITS: tl.constexpr,
    SHARED: tl.constexpr, SCALES: tl.constexpr, HALF: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A program for each row and key head of a layer."""
    _insert(
        tl.program_id(0), keys, values, scores, rate, first, priority, place, slot_key, slot_value,
        key_scale, value_scale, total, ring_index, write_mask, position, offset, row_stride,
        G, R, DIM, PADDED, BITS, SHARED, SCALES, HALF, TILE,
    )  # fmt: skip


@triton.jit
def insert_in_layers_kernel(
    table,  # [L, COLUMNS] int64, addresses in the order of `insert_in_layer_kernel`, then N
    like,  # a tensor of the dtype of the keys
    ring_index, write_mask, position, offset, row_stride,
    COLUMNS: tl.constexpr,
    G: tl.constexpr, R: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, BITS: tl.constexpr,
    SHARED: tl.constexpr, SCALES: tl.constexpr, HALF: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A program for each layer, row and key head."""
    table += tl.program_id(0) * COLUMNS
    numbers: tl.constexpr = tl.pointer_type(like.dtype.element_ty)
    held: tl.constexpr = tl.pointer_type(like.dtype.element_ty if BITS == 16 else tl.uint8)
    scaled: tl.constexpr = tl.pointer_type(like.dtype.element_ty if BITS == 16 else tl.float16)
    float32: tl.constexpr = tl.pointer_type(tl.float32)
    int32: tl.constexpr = tl.pointer_type(tl.int32)
    _insert(
        tl.program_id(1), tl.load(table).to(numbers), tl.load(table + 1).to(numbers),
        tl.load(table + 2).to(float32), tl.load(table + 3).to(float32),
        tl.load(table + 4).to(int32), tl.load(table + 5).to(float32), tl.load(table + 6).to(int32),
        tl.load(table + 7).to(held), tl.load(table + 8).to(held), tl.load(table + 9).to(scaled),
        tl.load(table + 10).to(scaled), tl.load(table + 11), ring_index, write_mask, position,
        offset, row_stride, G, R, DIM, PADDED, BITS, SHARED, SCALES, HALF, TILE,
    )  # fmt: skip
