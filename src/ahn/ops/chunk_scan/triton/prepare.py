"""Triton kernel of the intra-chunk factors: all that does not depend on the state."""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.chunk_scan.triton.common import decay_mask, load_rows

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _invert(b_A, BT: tl.constexpr, DOUBLINGS: tl.constexpr, DTYPE: tl.constexpr):
    """(I + A)^-1 for a strictly lower triangular A `[BT, BT]`.

    It starts from blocks of one row and doubles their size until one block is left. The inverse of
    [[A, 0], [C, B]] is [[A^-1, 0], [-B^-1 C A^-1, B^-1]]. For keys of norm 1 no entry is much
    larger than 1, so float16 does not overflow, and it has three more bits than bfloat16.
    """
    o_t = tl.arange(0, BT)
    apart = o_t[:, None] ^ o_t[None, :]  # its highest bit is the block size that parts row, column
    b_inv = tl.where(apart == 0, 1.0, 0.0) - tl.where(apart == 1, b_A, 0.0)
    for doubling in tl.static_range(1, DOUBLINGS):
        b_C = tl.where((apart >> doubling) == 1, b_A, 0.0).to(DTYPE)
        b_blocks = b_inv.to(DTYPE)
        b_product = tl.dot(b_blocks, b_C, input_precision="ieee").to(DTYPE)
        b_inv -= tl.dot(b_product, b_blocks, input_precision="ieee")
    return b_inv


@triton.jit
def _reciprocal_norms(b_squares, NORMALIZE: tl.constexpr, BT: tl.constexpr):
    """1 / norm of rows with these squared norms; 1 where rows are not to be normalised."""
    b_rnorm = tl.full((BT,), 1.0, tl.float32)
    if NORMALIZE:
        b_rnorm = tl.rsqrt(b_squares + 1e-6)
    return b_rnorm


@triton.jit(do_not_specialize=["T", "num_chunks", "stride_bb", "stride_gb"])
def prepare_kernel(
    q, k, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kg,
    raw_beta, stride_bb, stride_bt, stride_bh,  # [B, T, H]
    log_decay, stride_gb, stride_gt, stride_gh,  # [B, T, H]
    query_scale, key_scale, beta, g_cumsum, A_qk, A_inv,  # out
    scale, T, num_chunks, H, G,
    NORMALIZE: tl.constexpr, DELTA: tl.constexpr, DECAY: tl.constexpr, HAS_BETA: tl.constexpr,
    K: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, DOUBLINGS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The factors of one chunk and head.

    A_inv is (I + A)^-1, where A is strictly lower triangular with the entries
    beta_i exp(g_i - g_j) k_i k_j. A_qk is the masked q k^T with its decay, times A_inv.
    """
    i_h, i_t, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_k, o_t = tl.arange(0, BK), tl.arange(0, BT)
    first = i_t.to(tl.int64) * BT
    t = first + o_t
    m_t = t < T
    m_tk = m_t[:, None] & (o_k < K)[None, :]
    p_k = k + i_b * stride_kb + i_h // (H // G) * stride_kg
    b_k = load_rows(p_k, first, stride_kt, o_t, o_k, m_tk)
    p_q = q + i_b * stride_qb + i_h * stride_qh
    b_q = load_rows(p_q, first, stride_qt, o_t, o_k, m_tk)
    i_chunk = (i_b * H + i_h) * num_chunks + i_t
    o_token = i_chunk * BT + o_t
    b_kkT = tl.dot(b_k, tl.trans(b_k), input_precision="ieee")
    is_diagonal = o_t[:, None] == o_t[None, :]
    b_k_norms = tl.sum(tl.where(is_diagonal, b_kkT, 0.0), 1)
    b_k_scale = _reciprocal_norms(b_k_norms, NORMALIZE, BT)
    b_q32 = b_q.to(tl.float32)
    b_q_scale = _reciprocal_norms(tl.sum(b_q32 * b_q32, 1), NORMALIZE, BT)
    b_beta = tl.where(m_t, 1.0, 0.0)
    if HAS_BETA:
        b_beta = tl.load(raw_beta + i_b * stride_bb + i_h * stride_bh + t * stride_bt, m_t, 0.0)
        b_beta = b_beta.to(tl.float32)
    b_g = tl.zeros((BT,), tl.float32)
    if DECAY:
        b_log = tl.load(log_decay + i_b * stride_gb + i_h * stride_gh + t * stride_gt, m_t, 0.0)
        b_g = tl.cumsum(b_log.to(tl.float32) * LOG2E, 0)
        tl.store(g_cumsum + o_token, b_g)
    tl.store(query_scale + o_token, b_q_scale * scale)
    tl.store(key_scale + o_token, b_k_scale)
    tl.store(beta + o_token, b_beta)
    b_decay = decay_mask(b_g, o_t, DECAY, BT) * b_k_scale[None, :]
    b_A_qk = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * (b_decay * b_q_scale[:, None])
    o_tt = i_chunk * BT * BT + (o_t[:, None] * BT + o_t[None, :])
    if DELTA:
        b_A = tl.where(is_diagonal, 0.0, b_kkT * b_decay * (b_beta * b_k_scale)[:, None])
        b_A_inv = _invert(b_A, BT, DOUBLINGS, DTYPE)
        tl.store(A_inv + o_tt, b_A_inv.to(A_inv.dtype.element_ty))
        b_A_qk = tl.dot(b_A_qk.to(DTYPE), b_A_inv.to(DTYPE), input_precision="ieee")
    tl.store(A_qk + o_tt, (b_A_qk * scale).to(A_qk.dtype.element_ty))
