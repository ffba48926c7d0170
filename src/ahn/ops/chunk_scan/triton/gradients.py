"""Triton kernels of the intra-chunk gradients: queries, keys, values and gates.

Notation as in `ahn.ops.chunk_scan.triton.backward`. D is the decay between two tokens, w = exp(g)
the one from the chunk's start to a token, r = exp(g_last - g) the one to the chunk's end; k and q
are scaled:

    dq = w do h^T + (D do u^T) k
    dk = r u dh'^T + (D do u^T)^T q + Z^T k + (Z k - w beta de h^T),
        Z = -tril(D beta de u^T, -1)
    dbeta = de v + k (Z k - w beta de h^T) / beta

The first three terms of dk fall as the token's g_cumsum grows; the last two rise, and so does what
the token reads. So the gradient of g_cumsum is q dq - k (the first three) + k (the last two). The
last token's also has what comes from the decay of the state.

A query that reads a write of its own chunk contributes to q dq and to k dk. The gradient of a log
decay sums g_cumsum's over later tokens, where all pairs of such tokens must cancel. So the pairs
are summed over rows and columns here, before they are rounded for the products of dq and dk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.chunk_scan.triton.common import decay_mask, load_rows


@triton.jit
def _scale_backward(b_dx, b_x, b_scale, b_dot, NORMALIZE: tl.constexpr):
    """Gradient of rows x, from that of x times its scale and from their product `b_dot`.

    The norm of a normalised row does not change, so the part of the gradient along x drops out.
    """
    if NORMALIZE:
        b_x32 = b_x.to(tl.float32)
        b_dx -= b_x32 * (b_dot / (tl.sum(b_x32 * b_x32, 1) + 1e-6))[:, None]
    return b_dx * b_scale[:, None]


@triton.jit(do_not_specialize=["T", "num_chunks"])
def dq_kernel(
    q, k, v, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kg,
    stride_vb, stride_vt, stride_vg, query_scale, key_scale, beta, g_cumsum, A_qk, A_inv,
    h, u, do,
    dq,  # [B, T, H, K], out
    dg_cumsum,  # [B, H, num_chunks BT] float32, out: by what queries read
    T, num_chunks, H, G,
    NORMALIZE: tl.constexpr, DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries."""
    i_h, i_t, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_k, o_t, o_block = tl.arange(0, BK), tl.arange(0, BT), tl.arange(0, BV)
    first, i_chunk = i_t.to(tl.int64) * BT, (i_b * H + i_h) * num_chunks + i_t
    o_token, m_t = i_chunk * BT + o_t, (o_t < T - i_t * BT)[:, None]
    m_k = (o_k < K)[None, :]
    b_dA = tl.zeros((BT, BT), tl.float32)
    b_dq = tl.zeros((BT, BK), tl.float32)
    for first_v in range(0, V, BV):
        o_v = first_v + o_block
        p_do = do + (i_b * T * H + i_h) * V
        b_do = load_rows(p_do, first, H * V, o_t, o_v, m_t & (o_v < V)[None, :])
        b_u = load_rows(u, i_chunk * BT, V, o_t, o_v, (o_v < V)[None, :])
        b_h = load_rows(h, i_chunk * K, V, o_k, o_v, (o_k < K)[:, None] & (o_v < V)[None, :])
        b_dA = tl.dot(b_do, tl.trans(b_u), b_dA, input_precision="ieee")
        b_dq = tl.dot(b_do, tl.trans(b_h), b_dq, input_precision="ieee")
    b_g = tl.zeros((BT,), tl.float32)
    if DECAY:
        b_g = tl.load(g_cumsum + o_token)
    p_k = k + i_b * stride_kb + i_h // (H // G) * stride_kg
    b_k = load_rows(p_k, first, stride_kt, o_t, o_k, m_t & m_k)
    p_q = q + i_b * stride_qb + i_h * stride_qh
    b_q = load_rows(p_q, first, stride_qt, o_t, o_k, m_t & m_k)
    b_q_scale = tl.load(query_scale + o_token)
    b_dA *= decay_mask(b_g, o_t, DECAY, BT) * tl.load(key_scale + o_token)[None, :]
    b_dq *= tl.exp2(b_g)[:, None]
    if DECAY:  # the pairs of a chunk, for its queries and its keys; `dkv_kernel` leaves them out
        b_pairs = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * b_dA * b_q_scale[:, None]
        b_dg = tl.sum(b_pairs, 1) - tl.sum(b_pairs, 0)
        p_dg = dg_cumsum + o_token
        tl.store(p_dg, tl.sum(b_dq * b_q.to(tl.float32), 1) * b_q_scale + b_dg)
    b_dq = tl.dot(b_dA.to(b_k.dtype), b_k, b_dq, input_precision="ieee")
    b_dot = tl.sum(b_dq * b_q.to(tl.float32), 1)
    b_dq = _scale_backward(b_dq, b_q, b_q_scale, b_dot, NORMALIZE).to(dq.dtype.element_ty)
    p_dq = dq + ((i_b * T + first) * H + i_h) * K + (o_t[:, None] * H * K + o_k[None, :])
    tl.store(p_dq, b_dq, m_t & m_k)


@triton.jit
def _sum_over_values(
    v, stride_vb, stride_vt, stride_vg, h, u, do, dh, de, dv, b_beta, i_b, i_h, i_t, i_chunk,
    T, H, G,
    DELTA: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr,
    BV: tl.constexpr,
):  # fmt: skip
    """Store dv, and return the products whose inner dimension is V.

    These are u do^T, de u^T, u dh^T, de h^T, the sum of de v over V and the sum of h dh.
    """
    o_k, o_t, o_block = tl.arange(0, BK), tl.arange(0, BT), tl.arange(0, BV)
    first, m_t = i_t.to(tl.int64) * BT, (o_t < T - i_t * BT)[:, None]
    b_dA_qk = tl.zeros((BT, BT), tl.float32)  # rows write, columns read
    b_dA_kk = tl.zeros((BT, BT), tl.float32)  # rows read, columns write
    b_dk_fall = tl.zeros((BT, BK), tl.float32)
    b_dk_rise = tl.zeros((BT, BK), tl.float32)
    b_dbeta = tl.zeros((BT,), tl.float32)
    dg_last = 0.0
    for first_v in range(0, V, BV):
        o_v = first_v + o_block
        m_tv = m_t & (o_v < V)[None, :]
        p_v = v + i_b * stride_vb + i_h // (H // G) * stride_vg
        b_v = load_rows(p_v, first, stride_vt, o_t, o_v, m_tv)
        b_do = load_rows(do + (i_b * T * H + i_h) * V, first, H * V, o_t, o_v, m_tv)
        b_u = load_rows(u, i_chunk * BT, V, o_t, o_v, (o_v < V)[None, :])
        b_de = load_rows(de, i_chunk * BT, V, o_t, o_v, (o_v < V)[None, :])
        m_kv = (o_k < K)[:, None] & (o_v < V)[None, :]
        b_h = load_rows(h, i_chunk * K, V, o_k, o_v, m_kv)
        b_dh = load_rows(dh, i_chunk * K, V, o_k, o_v, m_kv)
        b_dA_qk = tl.dot(b_u, tl.trans(b_do), b_dA_qk, input_precision="ieee")
        b_dk_fall = tl.dot(b_u, tl.trans(b_dh), b_dk_fall, input_precision="ieee")
        if DELTA:
            b_dA_kk = tl.dot(b_de, tl.trans(b_u), b_dA_kk, input_precision="ieee")
            b_dk_rise = tl.dot(b_de, tl.trans(b_h), b_dk_rise, input_precision="ieee")
        b_de32 = b_de.to(tl.float32)
        b_dbeta += tl.sum(b_de32 * b_v.to(tl.float32), 1)
        dg_last += tl.sum(b_h.to(tl.float32) * b_dh.to(tl.float32))
        b_dv = (b_de32 * b_beta[:, None]).to(dv.dtype.element_ty)
        p_dv = dv + ((i_b * T + first) * H + i_h) * V + (o_t[:, None] * H * V + o_v[None, :])
        tl.store(p_dv, b_dv, m_tv)
    return b_dA_qk, b_dA_kk, b_dk_fall, b_dk_rise, b_dbeta, dg_last


@triton.jit
def _add_error_terms(
    b_dA_kk, b_dk_fall, b_dk_rise, b_k, b_k32, b_k_scale, b_beta, b_g, b_decay, o_t
):
    """The terms of dk that come from the errors, where k reads the state and other writes.

    Returns the terms that fall and that rise with g_cumsum, each with its product with k.
    """
    b_dA_kk *= tl.where(o_t[:, None] == o_t[None, :], 0.0, -b_decay)
    b_dA_kk_T = tl.trans((b_dA_kk * (b_beta * b_k_scale)[:, None]).to(b_k.dtype))
    b_dk_fall = tl.dot(b_dA_kk_T, b_k, b_dk_fall, input_precision="ieee")
    b_dg_fall = tl.sum(b_dk_fall * b_k32, 1) * b_k_scale
    b_dk_rise *= -tl.exp2(b_g)[:, None]
    b_dA_kk = (b_dA_kk * b_k_scale[None, :]).to(b_k.dtype)
    b_dk_rise = tl.dot(b_dA_kk, b_k, b_dk_rise, input_precision="ieee")
    b_dg_rise = tl.sum(b_dk_rise * b_k32, 1) * b_k_scale
    return b_dk_fall, b_dg_fall, b_dk_rise, b_dg_rise


@triton.jit(do_not_specialize=["T", "num_chunks"])
def dkv_kernel(
    q, k, v, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kg,
    stride_vb, stride_vt, stride_vg, query_scale, key_scale, beta, g_cumsum, A_qk, A_inv,
    h, u, do, dh, de, dg_cumsum,
    dk, dv,  # [B, T, H, K or V], out
    dbeta, dg,  # [B, T, H] float32, out
    T, num_chunks, H, G,
    NORMALIZE: tl.constexpr, DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients of keys, values, beta and log decay, for every query head."""
    i_h, i_t, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_k, o_t = tl.arange(0, BK), tl.arange(0, BT)
    first, i_chunk = i_t.to(tl.int64) * BT, (i_b * H + i_h) * num_chunks + i_t
    o_token, m_t = i_chunk * BT + o_t, (o_t < T - i_t * BT)[:, None]
    m_k = (o_k < K)[None, :]
    b_beta, b_k_scale = tl.load(beta + o_token), tl.load(key_scale + o_token)
    b_dA_qk, b_dA_kk, b_dk_fall, b_dk_rise, b_dbeta, dg_last = _sum_over_values(
        v, stride_vb, stride_vt, stride_vg, h, u, do, dh, de, dv, b_beta, i_b, i_h, i_t, i_chunk,
        T, H, G, DELTA, K, V, BK, BT, BV,
    )  # fmt: skip
    b_g, g_last = tl.zeros((BT,), tl.float32), 0.0
    if DECAY:
        b_g = tl.load(g_cumsum + o_token)
        g_last = tl.load(g_cumsum + i_chunk * BT + BT - 1)
    p_k = k + i_b * stride_kb + i_h // (H // G) * stride_kg
    b_k = load_rows(p_k, first, stride_kt, o_t, o_k, m_t & m_k)
    p_q = q + i_b * stride_qb + i_h * stride_qh
    b_q = load_rows(p_q, first, stride_qt, o_t, o_k, m_t & m_k)
    b_k32 = b_k.to(tl.float32)
    b_dk_fall *= tl.exp2(g_last - b_g)[:, None]
    b_dg_fall = tl.sum(b_dk_fall * b_k32, 1) * b_k_scale
    dg_last = dg_last * tl.exp2(g_last) + tl.sum(b_dg_fall)
    b_decay = decay_mask(b_g, o_t, DECAY, BT)
    b_dg_rise = tl.zeros((BT,), tl.float32)
    if DELTA:
        b_dk_fall, b_dg_fall, b_dk_rise, b_dg_rise = _add_error_terms(
            b_dA_kk, b_dk_fall, b_dk_rise, b_k, b_k32, b_k_scale, b_beta, b_g, b_decay, o_t
        )
        b_dbeta += b_dg_rise
    o_gate = (i_b * T + first + o_t) * H + i_h
    tl.store(dbeta + o_gate, b_dbeta, o_t < T - i_t * BT)
    if DECAY:
        b_dg = tl.load(dg_cumsum + o_token) + b_beta * b_dg_rise - b_dg_fall
        p_dg = dg + o_gate
        tl.store(p_dg, tl.cumsum(b_dg, 0, reverse=True) + dg_last, o_t < T - i_t * BT)
    b_dA_qk *= tl.trans(b_decay) * tl.load(query_scale + o_token)[None, :]
    b_dk_fall = tl.dot(b_dA_qk.to(b_q.dtype), b_q, b_dk_fall, input_precision="ieee")
    b_dk = b_dk_fall + b_dk_rise * b_beta[:, None]
    b_dot = tl.sum(b_dk * b_k32, 1)
    b_dk = _scale_backward(b_dk, b_k, b_k_scale, b_dot, NORMALIZE).to(dk.dtype.element_ty)
    p_dk = dk + ((i_b * T + first) * H + i_h) * K + (o_t[:, None] * H * K + o_k[None, :])
    tl.store(p_dk, b_dk, m_t & m_k)
