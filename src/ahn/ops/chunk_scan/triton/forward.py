"""Triton kernels of the inter-chunk state pass and of the outputs.

A chunk that starts from the state h turns its errors e = beta (v - decay k h) into the writes
u = A_inv e; its queries read q h + A_qk e, and it ends with the state h + k^T u, up to decays.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.chunk_scan.triton.common import (
    RUNTIME,
    delta_errors,
    load_decays,
    load_matrix,
    load_rows,
)


@triton.jit(do_not_specialize=RUNTIME)
def segment_state_kernel(
    q, k, v, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kg,
    stride_vb, stride_vt, stride_vg, query_scale, key_scale, beta, g_cumsum, A_qk, A_inv,
    h0,  # [B, H, P, K, V] float32: the first is given, the others are out
    transitions,  # float32, out: [B, H, P, K, K] of the delta rule, else [B, H, P]
    T, num_chunks, H, G, num_segments, segment_chunks,
    DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BK: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """What a segment adds to a state, and the matrix or number that it multiplies the state by.

    The first segment starts from the initial state, the others from zeros. Programs behind the
    columns of V compute the transition: they start from columns of the identity, without values.
    """
    i_h, i_v, i_s = tl.program_id(0) % H, tl.program_id(0) // H, tl.program_id(1)
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    is_value = i_v < BLOCKS
    if (i_s == 0) & (i_v >= BLOCKS):
        return
    i_b = tl.program_id(2).to(tl.int64)
    o_k, o_t = tl.arange(0, BK), tl.arange(0, BT)
    o_v = tl.where(is_value, i_v, i_v - BLOCKS) * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, (o_v < V) & is_value
    m_kv = m_k[:, None] & m_v[None, :]
    o_kv = o_k[:, None] * V + o_v[None, :]
    i_segment = (i_b * H + i_h) * num_segments + i_s
    b_h = tl.load(h0 + i_segment * K * V + o_kv, m_kv & (i_s == 0), 0.0)
    b_h += tl.where((o_k[:, None] == o_v[None, :]) & (i_v >= BLOCKS), 1.0, 0.0)
    k += i_b * stride_kb + i_h // (H // G) * stride_kg
    v += i_b * stride_vb + i_h // (H // G) * stride_vg
    segment_decay = 1.0
    for i_t in range(i_s * segment_chunks, (i_s + 1) * segment_chunks):
        first, i_chunk = tl.cast(i_t, tl.int64) * BT, (i_b * H + i_h) * num_chunks + i_t
        o_chunk, m_t = i_chunk * BT, (o_t < T - i_t * BT)[:, None]
        b_k = load_rows(k, first, stride_kt, o_t, o_k, m_t & m_k[None, :])
        b_v = load_rows(v, first, stride_vt, o_t, o_v, m_t & m_v[None, :])
        b_decay, b_decay_to_end, chunk_decay = load_decays(g_cumsum, o_chunk, o_t, DECAY, BT)
        b_k_scale, b_beta = tl.load(key_scale + o_chunk + o_t), tl.load(beta + o_chunk + o_t)
        b_u = delta_errors(b_v, b_k, b_h.to(b_k.dtype), b_beta, b_decay * b_k_scale, DELTA)
        if DELTA:
            b_A_inv = load_matrix(A_inv, i_chunk, o_t, BT)
            b_u = tl.dot(b_A_inv, b_u.to(b_k.dtype), input_precision="ieee")
        b_u = (b_u * (b_decay_to_end * b_k_scale)[:, None]).to(b_k.dtype)
        b_h = tl.dot(tl.trans(b_k), b_u, b_h * chunk_decay, input_precision="ieee")
        segment_decay *= chunk_decay
    if is_value:
        tl.store(h0 + (i_segment + 1) * K * V + o_kv, b_h, m_kv)
        if (not DELTA) & (i_v == 0):
            tl.store(transitions + i_segment, segment_decay)
    else:
        o_kk = o_k[:, None] * K + o_v[None, :]
        p_transition = transitions + i_segment * K * K + o_kk
        tl.store(p_transition, b_h, m_k[:, None] & (o_v < K)[None, :])


@triton.jit(do_not_specialize=["num_segments"])
def pass_states_kernel(
    h,  # [B, H, P, K, V] float32, in place
    transitions, num_segments,
    DELTA: tl.constexpr, REVERSE: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Turn what segments add to a state into the state itself, from the second one on.

    Forward this is the state that a segment starts from. In REVERSE, from the last segment to the
    first, it is the gradient of the state that a segment ends with; transitions are transposed.
    """
    i_head = tl.program_id(1).to(tl.int64) * num_segments
    o_k, o_v = tl.arange(0, BK), tl.program_id(0) * BV + tl.arange(0, BV)
    m_kv = (o_k < K)[:, None] & (o_v < V)[None, :]
    o_kv = o_k[:, None] * V + o_v[None, :]
    o_col = o_k[:, None] if REVERSE else o_k[None, :]
    o_row = o_k[None, :] if REVERSE else o_k[:, None]
    i_s = num_segments - 2 if REVERSE else 1
    b_h = tl.load(h + (i_head + i_s) * K * V + o_kv, m_kv, 0.0)
    for _ in range(1, num_segments - 1):
        i_next = i_s - 1 if REVERSE else i_s + 1
        b_added = tl.load(h + (i_head + i_next) * K * V + o_kv, m_kv, 0.0)
        if DELTA:
            o_kk = (i_head + i_s) * K * K + o_row * K + o_col
            p_transition = transitions + o_kk
            b_transition = tl.load(p_transition, (o_k < K)[:, None] & (o_k < K)[None, :], 0.0)
            b_h = tl.dot(b_transition, b_h, input_precision="tf32x3") + b_added
        else:
            b_h = b_h * tl.load(transitions + i_head + i_s) + b_added
        tl.store(h + (i_head + i_next) * K * V + o_kv, b_h, m_kv)
        i_s = i_next


@triton.jit(do_not_specialize=RUNTIME)
def output_kernel(
    q, k, v, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kg,
    stride_vb, stride_vt, stride_vg, query_scale, key_scale, beta, g_cumsum, A_qk, A_inv,
    h0,  # [B, H, P, K, V] float32
    o,  # [B, T, H, V], out
    ht,  # [B, H, K, V] float32, out
    T, num_chunks, H, G, num_segments, segment_chunks,
    DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BK: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The outputs of a segment from the state it starts from; the last segment's final state."""
    i_h, i_v, i_s = tl.program_id(0) % H, tl.program_id(0) // H, tl.program_id(1)
    i_b = tl.program_id(2).to(tl.int64)
    o_k, o_t = tl.arange(0, BK), tl.arange(0, BT)
    o_v = i_v * BV + tl.arange(0, BV)
    m_k, m_v = (o_k < K)[None, :], (o_v < V)[None, :]
    m_kv = (o_k < K)[:, None] & m_v
    o_kv = o_k[:, None] * V + o_v[None, :]
    b_h = tl.load(h0 + ((i_b * H + i_h) * num_segments + i_s) * K * V + o_kv, m_kv, 0.0)
    q += i_b * stride_qb + i_h * stride_qh
    k += i_b * stride_kb + i_h // (H // G) * stride_kg
    v += i_b * stride_vb + i_h // (H // G) * stride_vg
    o += (i_b * T * H + i_h) * V
    for i_t in range(i_s * segment_chunks, tl.minimum((i_s + 1) * segment_chunks, num_chunks)):
        first, i_chunk = tl.cast(i_t, tl.int64) * BT, (i_b * H + i_h) * num_chunks + i_t
        o_chunk, m_t = i_chunk * BT, (o_t < T - i_t * BT)[:, None]
        b_k = load_rows(k, first, stride_kt, o_t, o_k, m_t & m_k)
        b_q = load_rows(q, first, stride_qt, o_t, o_k, m_t & m_k)
        # The condition always holds. It keeps the values from being prefetched: with shared memory
        # for that, a multiprocessor would run only one program at a time.
        if num_chunks > 0:
            b_v = load_rows(v, first, stride_vt, o_t, o_v, m_t & m_v)
        else:
            b_v = tl.zeros((BT, BV), v.dtype.element_ty)
        b_decay, b_decay_to_end, chunk_decay = load_decays(g_cumsum, o_chunk, o_t, DECAY, BT)
        b_k_scale, b_beta = tl.load(key_scale + o_chunk + o_t), tl.load(beta + o_chunk + o_t)
        b_h_rounded = b_h.to(b_k.dtype)
        b_o = tl.dot(b_q, b_h_rounded, input_precision="ieee")
        b_o *= (b_decay * tl.load(query_scale + o_chunk + o_t))[:, None]
        b_u = delta_errors(b_v, b_k, b_h_rounded, b_beta, b_decay * b_k_scale, DELTA)
        b_e = b_u.to(b_k.dtype)
        b_o = tl.dot(load_matrix(A_qk, i_chunk, o_t, BT), b_e, b_o, input_precision="ieee")
        b_o = b_o.to(o.dtype.element_ty)
        tl.store(o + first * H * V + (o_t[:, None] * H * V + o_v[None, :]), b_o, m_t & m_v)
        if DELTA:
            b_u = tl.dot(load_matrix(A_inv, i_chunk, o_t, BT), b_e, input_precision="ieee")
        b_u = (b_u * (b_decay_to_end * b_k_scale)[:, None]).to(b_k.dtype)
        b_h = tl.dot(tl.trans(b_k), b_u, b_h * chunk_decay, input_precision="ieee")
    if i_s == num_segments - 1:
        tl.store(ht + (i_b * H + i_h) * K * V + o_kv, b_h, m_kv)
