"""Triton kernels of the window's attention: merging by log-sum-exp, and tokens in reverse order."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merge_lse_kernel(
    target, base, base_lse, full, full_lse, anti, anti_lse,
    target_b, target_h, target_q,
    base_b, base_h, base_q, base_lse_b, base_lse_h, base_lse_q,
    full_b, full_h, full_q, full_lse_b, full_lse_h, full_lse_q,
    anti_b, anti_h, anti_q, anti_lse_b, anti_lse_h, anti_lse_q,
    heads, queries, anti_queries,
    HAS_FULL: tl.constexpr, HAS_ANTICAUSAL: tl.constexpr, WITH_LSE: tl.constexpr,
    BLOCK: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """See `ahn.ops.window_attention.cudnn_forward.merge_lse`."""
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    j = tl.arange(0, PADDED)[None, :]
    base += batch * base_b + head * base_h + q[:, None] * base_q + j
    q_mask = q < queries
    mask = q_mask[:, None] & (j < DIM)
    base_lse += batch * base_lse_b + head * base_lse_h + q * base_lse_q
    m = tl.load(base_lse, q_mask, 0.0)
    acc, weights = tl.load(base, mask, 0.0).to(tl.float32), tl.full((BLOCK,), 1.0, tl.float32)
    if HAS_FULL:
        full_lse += batch * full_lse_b + head * full_lse_h + q * full_lse_q
        full += batch * full_b + head * full_h + q[:, None] * full_q + j
        lse, out = tl.load(full_lse, q_mask, 0.0), tl.load(full, mask, 0.0)
        acc, weights, m = _accumulate(acc, weights, m, out, lse)
    if HAS_ANTICAUSAL:
        reverse_q = anti_queries - 1 - q
        has_any = reverse_q >= 0
        anti_lse += batch * anti_lse_b + head * anti_lse_h + reverse_q * anti_lse_q
        anti += batch * anti_b + head * anti_h + reverse_q[:, None] * anti_q + j
        lse = tl.load(anti_lse, has_any, -float("inf"))
        out = tl.load(anti, has_any[:, None] & (j < DIM), 0.0)
        acc, weights, m = _accumulate(acc, weights, m, out, lse)
    target += batch * target_b + head * target_h + q[:, None] * target_q + j
    tl.store(target, (acc / weights[:, None]).to(target.dtype.element_ty), mask)
    if WITH_LSE:
        tl.store(base_lse, m + tl.log(weights), q_mask)


@triton.jit
def _accumulate(acc, weights, m, out, lse):
    """Add one attention to the weighted sum `acc` and the weights, both relative to exp(m)."""
    m_new = tl.maximum(m, lse)
    old_scale, weight = tl.exp(m - m_new), tl.exp(lse - m_new)
    acc = acc * old_scale[:, None] + out.to(tl.float32) * weight[:, None]
    return acc, weights * old_scale + weight, m_new


@triton.jit
def reverse_kernel(
    to, x, to_b, to_t, x_b, x_t, tokens, size, ADD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """See `ahn.ops.window_attention.blocks.reverse`."""
    t, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    to += b * to_b + t.to(tl.int64) * to_t + i
    b_x = tl.load(x + b * x_b + (tokens - 1 - t).to(tl.int64) * x_t + i, i < size)
    if ADD:
        b_x = (tl.load(to, i < size).to(tl.float32) + b_x.to(tl.float32)).to(b_x.dtype)
    tl.store(to, b_x, i < size)
