"""Triton kernel of attention over sinks and window, as in FlashAttention-2.

Scores, weights and their sums never leave a multiprocessor (arXiv 2307.08691). Scores are in base
2, so that weights are powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend(q, k, v, seen, m, total, acc, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Add a block of keys to the largest score, the sum of weights and the weighted values."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    m_new = tl.maximum(m, tl.max(scores, 1))
    finite = tl.where(m_new == float("-inf"), 0.0, m_new)  # a query that has seen nothing yet
    weights = tl.exp2(scores - finite[:, None])
    keep = tl.exp2(m - finite)
    acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision=PRECISION)
    return m_new, total * keep + tl.sum(weights, 1), acc


@triton.jit
def _load(x, index, stride, offset, inside):
    return tl.load(x + index.to(tl.int64)[:, None] * stride + offset[None, :], inside, 0.0)


@triton.jit
def _store(out, lse, i, number, stride, o_v, m_v, m, total, acc):
    """Outputs and log-sum-exp of the queries i below `number`; zeros where nothing was seen."""
    some = tl.where(total > 0.0, total, 1.0)
    inside = i < number
    o = (acc / some[:, None]).to(out.dtype.element_ty)
    p_out = out + i.to(tl.int64)[:, None] * stride + o_v[None, :]
    tl.store(p_out, o, inside[:, None] & m_v)
    tl.store(lse + i, (m + tl.log2(some)) / LOG2E, inside)


@triton.jit
def _attend_columns(
    q, k, v, stride_k, stride_v, low, high, reader, m, total, acc, scale,
    o_k, o_v, m_k, m_v, window, MASKED: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Columns low to high, of which query i sees the last `window` up to reader_i."""
    for first in range(low, high, BLOCK):
        j = first + tl.arange(0, BLOCK)
        inside = (j < high)[:, None]
        b_k = _load(k, j, stride_k, o_k, inside & m_k)
        b_v = _load(v, j, stride_v, o_v, inside & m_v)
        distance = reader[:, None] - j[None, :]
        seen = (distance >= 0) & (distance < window) & (j < high)[None, :]
        m, total, acc = _attend(q, b_k, b_v, seen, m, total, acc, scale, MASKED, PRECISION)
    return m, total, acc


@triton.jit
def window_kernel(
    query, key, value, sink_key, sink_value, start, out, lse,
    q_b, q_h, q_t, k_b, k_g, k_t, v_b, v_g, v_t, sk_b, sk_g, sk_t, sv_b, sv_g, sv_t,
    o_b, o_h, o_t, scale, H, G, C, T, S, window,
    START_STRIDE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of one head's queries; see `ahn.ops.window_attention.flash`."""
    # The last queries see the most: they come first.
    i_q = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    group = head // (H // G)
    i = i_q * QUERIES + tl.arange(0, QUERIES)
    o_k, o_v = tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = (o_k < K)[None, :], (o_v < V)[None, :]
    q = _load(query + batch * q_b + head * q_h, i, q_t, o_k, (i < C)[:, None] & m_k)
    m = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, BV), tl.float32)
    k, v = key + batch * k_b + group * k_g, value + batch * v_b + group * v_g
    before = tl.load(start + batch * START_STRIDE).to(tl.int32)  # position of column 0
    reader = T - C + i
    sk, sv = sink_key + batch * sk_b + group * sk_g, sink_value + batch * sv_b + group * sv_g
    for s in range(0, S, BLOCK):
        j = s + tl.arange(0, BLOCK)
        inside = (j < S)[:, None]
        b_k = _load(sk, j, sk_t, o_k, inside & m_k)
        b_v = _load(sv, j, sv_t, o_v, inside & m_v)
        seen = (j[None, :] <= (reader + before)[:, None]) & (j < S)[None, :]
        m, total, acc = _attend(q, b_k, b_v, seen, m, total, acc, scale, True, PRECISION)
    # Sinks among the columns have been seen. The columns that all queries of the block see
    # lie between those that the first still sees and those that the last sees already.
    high = tl.minimum(T - C + (i_q + 1) * QUERIES, T)
    low = tl.maximum(T - C + i_q * QUERIES - window + 1, tl.maximum(S - before, 0))
    low = tl.minimum(low, high)  # the queries may all be sinks
    full_low = tl.maximum(T - C + (i_q + 1) * QUERIES - window, low)
    full_high = tl.maximum(T - C + i_q * QUERIES + 1, full_low)
    full_low = tl.minimum(low + tl.cdiv(full_low - low, BLOCK) * BLOCK, high)
    full_high = full_low + tl.maximum(full_high - full_low, 0) // BLOCK * BLOCK
    m, total, acc = _attend_columns(
        q, k, v, k_t, v_t, low, full_low, reader, m, total, acc, scale,
        o_k, o_v, m_k, m_v, window, True, BLOCK, PRECISION,
    )  # fmt: skip
    m, total, acc = _attend_columns(
        q, k, v, k_t, v_t, full_low, full_high, reader, m, total, acc, scale,
        o_k, o_v, m_k, m_v, window, False, BLOCK, PRECISION,
    )  # fmt: skip
    m, total, acc = _attend_columns(
        q, k, v, k_t, v_t, full_high, high, reader, m, total, acc, scale,
        o_k, o_v, m_k, m_v, window, True, BLOCK, PRECISION,
    )  # fmt: skip
    o = out + batch * o_b + head * o_h
    _store(o, lse + (batch * H + head) * C, i, C, o_t, o_v, m_v, m, total, acc)
