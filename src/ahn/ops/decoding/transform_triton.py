"""Norm and RoPE of a new token's queries and key, in the kernels of a decoding step."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def rms_factor(x, i, mask, eps, DIM: tl.constexpr, QK_NORM: tl.constexpr):
    """1 / sqrt(mean x^2 + eps) over each head at x; 1 where there is no norm."""
    factor = 1.0
    if QK_NORM:
        b_x = tl.load(x + i, mask, 0.0).to(tl.float32)
        axis: tl.constexpr = len(b_x.shape) - 1
        factor = tl.rsqrt(tl.sum(b_x * b_x, axis, keep_dims=True) / DIM + eps)
    return factor


@triton.jit
def norm_rope(
    x, i, mask, factor, norm, cos, sin,
    DIM: tl.constexpr, QK_NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Numbers i of heads at x after RMSNorm and RoPE, each where it is still to be done."""
    b_x = tl.load(x + i, mask, 0.0).to(tl.float32)
    if QK_NORM:
        b_x *= factor * tl.load(norm + i, i < DIM, 0.0).to(tl.float32)
    if ROPE:
        HALF: tl.constexpr = DIM // 2
        o_pair = tl.where(i < HALF, i + HALF, i - HALF)
        b_pair = tl.load(x + o_pair, mask, 0.0).to(tl.float32)
        if QK_NORM:
            b_pair *= factor * tl.load(norm + o_pair, i < DIM, 0.0).to(tl.float32)
        o_angle = tl.where(i < HALF, i, o_pair)
        b_x *= tl.load(cos + o_angle, i < DIM, 0.0).to(tl.float32)
        b_pair *= tl.load(sin + o_angle, i < DIM, 0.0).to(tl.float32)
        b_x += tl.where(i < HALF, -b_pair, b_pair)
    return b_x.to(x.dtype.element_ty)
