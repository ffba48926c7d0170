"""Triton kernels that recompute the states and carry their gradients back over the chunks.

A chunk starts from the state h and ends with h'. With scaled queries and keys, all decays left out
(arXiv 2412.06464, section 3.3): errors e = beta (v - k h), writes u = A_inv e, output
o = q h + A_qk e, h' = h + k^T u. So the gradients are

    de = A_qk^T do + A_inv^T k dh',  dh = dh' + q^T do - k^T (beta de).
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
def recompute_states_kernel(
    q, k, v, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kg,
    stride_vb, stride_vt, stride_vg, query_scale, key_scale, beta, g_cumsum, A_qk, A_inv,
    h0,  # [B, H, P, K, V] float32
    h,  # [B, H, num_chunks, K, V], out: the state each chunk starts from
    u,  # [B, H, num_chunks BT, V], out
    T, num_chunks, H, G, num_segments, segment_chunks,
    DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BK: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The forward's states once more; this time they are stored, with the writes."""
    i_h, i_v, i_s = tl.program_id(0) % H, tl.program_id(0) // H, tl.program_id(1)
    i_b = tl.program_id(2).to(tl.int64)
    o_k, o_t = tl.arange(0, BK), tl.arange(0, BT)
    o_v = i_v * BV + tl.arange(0, BV)
    m_v = (o_v < V)[None, :]
    m_kv = (o_k < K)[:, None] & m_v
    o_kv = o_k[:, None] * V + o_v[None, :]
    b_h = tl.load(h0 + ((i_b * H + i_h) * num_segments + i_s) * K * V + o_kv, m_kv, 0.0)
    k += i_b * stride_kb + i_h // (H // G) * stride_kg
    v += i_b * stride_vb + i_h // (H // G) * stride_vg
    for i_t in range(i_s * segment_chunks, tl.minimum((i_s + 1) * segment_chunks, num_chunks)):
        first, i_chunk = tl.cast(i_t, tl.int64) * BT, (i_b * H + i_h) * num_chunks + i_t
        o_chunk, m_t = i_chunk * BT, (o_t < T - i_t * BT)[:, None]
        b_k = load_rows(k, first, stride_kt, o_t, o_k, m_t & (o_k < K)[None, :])
        b_v = load_rows(v, first, stride_vt, o_t, o_v, m_t & m_v)
        b_decay, b_decay_to_end, chunk_decay = load_decays(g_cumsum, o_chunk, o_t, DECAY, BT)
        b_k_scale, b_beta = tl.load(key_scale + o_chunk + o_t), tl.load(beta + o_chunk + o_t)
        b_h_rounded = b_h.to(b_k.dtype)
        tl.store(h + i_chunk * K * V + o_kv, b_h_rounded, m_kv)
        b_u = delta_errors(b_v, b_k, b_h_rounded, b_beta, b_decay * b_k_scale, DELTA)
        if DELTA:
            b_A_inv = load_matrix(A_inv, i_chunk, o_t, BT)
            b_u = tl.dot(b_A_inv, b_u.to(b_k.dtype), input_precision="ieee")
        tl.store(u + o_chunk * V + (o_t[:, None] * V + o_v[None, :]), b_u.to(b_k.dtype), m_v)
        b_u = (b_u * (b_decay_to_end * b_k_scale)[:, None]).to(b_k.dtype)
        b_h = tl.dot(tl.trans(b_k), b_u, b_h * chunk_decay, input_precision="ieee")


@triton.jit(do_not_specialize=RUNTIME)
def state_gradient_kernel(
    q, k, v, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kg,
    stride_vb, stride_vt, stride_vg, query_scale, key_scale, beta, g_cumsum, A_qk, A_inv,
    do,  # [B, T, H, V], contiguous
    dht,  # [B, H, P, K, V] float32, of the state each segment ends with; the last one is given
    dh,  # [B, H, num_chunks, K, V], out: of the state each chunk ends with
    de,  # [B, H, num_chunks BT, V], out
    dh0,  # [B, H, K, V] float32, out
    T, num_chunks, H, G, num_segments, segment_chunks,
    STORE_CHUNKS: tl.constexpr,
    DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BK: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """With STORE_CHUNKS: each chunk's gradients, from that of the state its segment ends with.

    Without: what each segment but the first adds to the gradient of the state it starts from. The
    last segment starts from the final state's gradient, the others from zeros.
    """
    i_h, i_v = tl.program_id(0) % H, tl.program_id(0) // H
    i_s = tl.program_id(1) if STORE_CHUNKS else tl.program_id(1) + 1
    i_b = tl.program_id(2).to(tl.int64)
    o_k, o_t = tl.arange(0, BK), tl.arange(0, BT)
    o_v = i_v * BV + tl.arange(0, BV)
    m_k, m_v = (o_k < K)[None, :], (o_v < V)[None, :]
    m_kv = (o_k < K)[:, None] & m_v
    o_kv = o_k[:, None] * V + o_v[None, :]
    i_segment = (i_b * H + i_h) * num_segments + i_s
    is_given = STORE_CHUNKS | (i_s == num_segments - 1)
    b_dh = tl.load(dht + i_segment * K * V + o_kv, m_kv & is_given, 0.0)
    q += i_b * stride_qb + i_h * stride_qh
    k += i_b * stride_kb + i_h // (H // G) * stride_kg
    do += (i_b * T * H + i_h) * V
    begin, end = i_s * segment_chunks, tl.minimum((i_s + 1) * segment_chunks, num_chunks)
    for index in range(begin, end):
        i_t = begin + end - 1 - index
        first, i_chunk = tl.cast(i_t, tl.int64) * BT, (i_b * H + i_h) * num_chunks + i_t
        o_chunk, m_t = i_chunk * BT, (o_t < T - i_t * BT)[:, None]
        b_k = load_rows(k, first, stride_kt, o_t, o_k, m_t & m_k)
        b_q = load_rows(q, first, stride_qt, o_t, o_k, m_t & m_k)
        b_do = load_rows(do, first, H * V, o_t, o_v, m_t & m_v)
        b_decay, b_decay_to_end, chunk_decay = load_decays(g_cumsum, o_chunk, o_t, DECAY, BT)
        b_k_scale, b_beta = tl.load(key_scale + o_chunk + o_t), tl.load(beta + o_chunk + o_t)
        b_dh_rounded = b_dh.to(b_k.dtype)
        b_du = tl.dot(b_k, b_dh_rounded, input_precision="ieee")
        b_du *= (b_decay_to_end * b_k_scale)[:, None]
        b_A_qk_T = tl.trans(load_matrix(A_qk, i_chunk, o_t, BT))
        if DELTA:
            b_A_inv_T = tl.trans(load_matrix(A_inv, i_chunk, o_t, BT))
            b_du = tl.dot(b_A_inv_T, b_du.to(b_k.dtype), input_precision="ieee")
        b_de = tl.dot(b_A_qk_T, b_do, b_du, input_precision="ieee")
        if STORE_CHUNKS:
            tl.store(dh + i_chunk * K * V + o_kv, b_dh_rounded, m_kv)
            p_de = de + o_chunk * V + (o_t[:, None] * V + o_v[None, :])
            tl.store(p_de, b_de.to(b_k.dtype), m_v)
        b_do = (b_do * (b_decay * tl.load(query_scale + o_chunk + o_t))[:, None]).to(b_k.dtype)
        b_dh = tl.dot(tl.trans(b_q), b_do, b_dh * chunk_decay, input_precision="ieee")
        if DELTA:
            b_dkh = (b_de * -(b_beta * b_decay * b_k_scale)[:, None]).to(b_k.dtype)
            b_dh = tl.dot(tl.trans(b_k), b_dkh, b_dh, input_precision="ieee")
    if STORE_CHUNKS:
        o_dh0 = (i_b * H + i_h) * K * V + o_kv
        tl.store(dh0 + o_dh0, b_dh, m_kv & (i_s == 0))
    else:
        tl.store(dht + (i_segment - 1) * K * V + o_kv, b_dh, m_kv)
