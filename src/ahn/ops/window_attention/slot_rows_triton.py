"""Triton kernel that lets slots join an attention over sinks and window, by its log-sum-exp."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_slot_rows_kernel(
    out, lse, query, key, value, index, slot_end, arrival_end,
    out_b, out_h, out_q, lse_b, lse_h, lse_q, query_b, query_h, query_q,
    key_b, key_g, key_n, value_b, value_g, value_n,
    index_b, index_g, index_n, end_b, end_g, end_n, arrival_b, arrival_g, arrival_n,
    heads, repeats, slots, held, readers, block, first, scale,
    TILE: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """See `ahn.ops.window_attention.slot_rows.add_slot_rows`; a program has TILE readers."""
    tiles = tl.cdiv(block, TILE)
    number, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    group = head // repeats
    reader = tile * TILE + tl.arange(0, TILE)  # of the block
    q = number * block + reader - first  # of the queries given
    is_query = (reader < block) & (q >= 0) & (number * block + reader < readers)
    j = tl.arange(0, PADDED)
    mask = is_query[:, None] & (j < DIM)[None, :]
    query += batch * query_b + head * query_h + q[:, None] * query_q + j[None, :]
    out += batch * out_b + head * out_h + q[:, None] * out_q + j[None, :]
    lse += batch * lse_b + head * lse_h + q * lse_q
    key += batch * key_b + group * key_g + j
    value += batch * value_b + group * value_g + j
    index += batch * index_b + group * index_g + number * index_n
    slot_end += batch * end_b + group * end_g + number * end_n
    arrival_end += batch * arrival_b + group * arrival_g + number * arrival_n
    b_q = tl.load(query, mask, 0.0)
    m = tl.load(lse, is_query, 0.0)
    acc, weights = tl.load(out, mask, 0.0).to(tl.float32), tl.full((TILE,), 1.0, tl.float32)
    # The best slots come first: behind what can be filled by now all are empty.
    most = tl.minimum(slots, held + number * block)
    for low in range(0, most, ROWS):
        n = low + tl.arange(0, ROWS)
        row = tl.load(index + n, n < most, 0)
        end = tl.load(slot_end + n, n < most, 0)
        visible = reader[:, None] < end[None, :]
        acc, weights, m = _add_rows(
            acc, weights, m, b_q, key, value, key_n, value_n, row, end > 0, visible, j, scale, DIM
        )
    last = tl.minimum(block, (tile + 1) * TILE)
    for low in range(0, last, ROWS):
        n = low + tl.arange(0, ROWS)
        is_row = (n < last) & (number * block + n < readers)
        end = tl.load(arrival_end + n, is_row, 0)
        visible = (n[None, :] <= reader[:, None]) & (reader[:, None] < end[None, :])
        row = (slots + number * block + n).to(tl.int64)
        acc, weights, m = _add_rows(
            acc, weights, m, b_q, key, value, key_n, value_n, row, end > 0, visible, j, scale, DIM
        )
    tl.store(out, (acc / weights[:, None]).to(out.dtype.element_ty), mask)


@triton.jit
def _add_rows(
    acc, weights, m, b_q, key, value, key_n, value_n, row, is_row, visible, j, scale,
    DIM: tl.constexpr,
):  # fmt: skip
    """Add the rows to the weighted sum `acc` and the weights, both relative to exp(m)."""
    mask = is_row[:, None] & (j < DIM)[None, :]
    b_k = tl.load(key[None, :] + row[:, None] * key_n, mask, 0.0)
    b_v = tl.load(value[None, :] + row[:, None] * value_n, mask, 0.0)
    scores = tl.dot(b_q, tl.trans(b_k)) * scale
    scores = tl.where(visible, scores, -float("inf"))
    m_new = tl.maximum(m, tl.max(scores, 1))  # finite: each query sees itself
    old, weight = tl.exp(m - m_new), tl.exp(scores - m_new[:, None])
    acc = acc * old[:, None] + tl.dot(weight.to(b_v.dtype), b_v)
    return acc, weights * old + tl.sum(weight, 1), m_new
