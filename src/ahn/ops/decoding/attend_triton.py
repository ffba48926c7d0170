"""Attention of a new token's queries over splits of the ring and of slots, as in flash-decoding.

A split's largest score, sum of weights and weighted sum of values are merged later. Shapes as in
`ahn.ops.decoding.triton`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.decoding.transform_triton import LOG2E


@triton.jit
def attend_ring(
    q, keys, values, first, last, index, scale: tl.constexpr, DIM: tl.constexpr,
    PADDED: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Over the tokens `first` to `last` - 1 of a group's ring, without the evicted one."""
    i = tl.arange(0, PADDED)
    m_i = tl.full((HEADS,), float("-inf"), tl.float32)
    l_i = tl.zeros((HEADS,), tl.float32)
    acc = tl.zeros((HEADS, PADDED), tl.float32)
    for block in range(first, last, BLOCK):
        n = block + tl.arange(0, BLOCK)
        kv_mask = (n < last)[:, None] & (i < DIM)[None, :]
        offset = n[:, None] * DIM + i[None, :]
        k = tl.load(keys + offset, kv_mask, 0.0)
        v = tl.load(values + offset, kv_mask, 0.0)
        visible = (n < last) & (n != index)
        m_i, l_i, acc = _add_block(m_i, l_i, acc, q, k, v, visible, scale, PRECISION)
    return m_i, l_i, acc


@triton.jit
def attend_slots(
    m_i, l_i, acc, q, slots, begin, first, last, scale: tl.constexpr, DIM: tl.constexpr,
    PADDED: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, BITS: tl.constexpr,
    SHARED: tl.constexpr,
):  # fmt: skip
    """And over a head's slots `first` to `last` - 1; its first is row `begin` of the buffers."""
    place, key, value, key_scale, value_scale = slots[1], slots[2], slots[3], slots[4], slots[5]
    for block in range(first, last, BLOCK):
        n = block + tl.arange(0, BLOCK)
        row = begin + n
        filled = tl.load(place + row, n < last, 0) > 0
        k = _load_pairs(key, key_scale, row, filled, q.dtype, DIM, PADDED, BITS, SHARED)
        v = _load_pairs(value, value_scale, row, filled, q.dtype, DIM, PADDED, BITS, SHARED)
        m_i, l_i, acc = _add_block(m_i, l_i, acc, q, k, v, filled, scale, PRECISION)
    return m_i, l_i, acc


@triton.jit
def _add_block(m_i, l_i, acc, q, k, v, visible, scale: tl.constexpr, PRECISION: tl.constexpr):
    """Add the visible of a block of keys."""
    qk = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
    qk = tl.where(visible[None, :], qk, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(qk, 1))
    # m_new is -inf where nothing was visible so far.
    m_finite = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(qk - m_finite[:, None])
    alpha = tl.exp2(m_i - m_finite)
    l_i = l_i * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    acc += tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    return m_new, l_i, acc


@triton.jit
def _load_pairs(
    numbers, scales, row, filled, dtype: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    BITS: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Keys or values in some rows, see `ahn.ops.slots.dequantised`."""
    i = tl.arange(0, PADDED)
    mask = filled[:, None] & (i < DIM)[None, :]
    if BITS == 16:
        b_x = tl.load(numbers + row[:, None] * DIM + i[None, :], mask, 0.0)
    else:
        scale = tl.load(scales + row[:, None] * (DIM // SHARED) + (i // SHARED)[None, :], mask, 0.0)
        if BITS == 8:
            code = tl.load(numbers + row[:, None] * DIM + i[None, :], mask, 128).to(tl.int32)
        else:
            both = tl.load(numbers + row[:, None] * (DIM // 2) + (i // 2)[None, :], mask, 136)
            both = both.to(tl.int32)
            code = tl.where((i % 2 == 0)[None, :], both & 15, both >> 4)
        b_x = (code - 2 ** (BITS - 1)).to(tl.float32) * scale.to(tl.float32)
        b_x = b_x.to(dtype)
    return b_x
