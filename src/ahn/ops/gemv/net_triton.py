"""Triton kernel of a small net's hidden layer; see `ahn.ops.gemv.norm_net`."""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.dependent_launch import launch_dependents, wait_for_prerequisites
from ahn.ops.gemv.triton import silu


@triton.jit
def norm_hidden(
    x,  # [B, D]
    norm,  # [D]
    weight,  # [R, D] float32
    bias,  # [R] float32
    out,  # [B, R] float32
    R, eps: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """ROWS numbers of silu(weight n + bias), n the normed x of one row, rounded to its dtype."""
    row = tl.program_id(1).to(tl.int64)
    r, i = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    x += row * D
    launch_dependents(PDL)
    b_bias = tl.load(bias + r, r < R, 0.0)
    wait_for_prerequisites(PDL)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, D, BLOCK):
        b_x = tl.load(x + start + i, start + i < D, 0.0).to(tl.float32)
        squares += b_x * b_x
    factor = tl.rsqrt(tl.sum(squares, 0) / D + eps)
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, D, BLOCK):
        column = start + i
        b_x = tl.load(x + column, column < D, 0.0).to(tl.float32)
        b_norm = tl.load(norm + column, column < D, 0.0).to(tl.float32)
        normed = (b_x * factor * b_norm).to(x.dtype.element_ty).to(tl.float32)
        mask = (r < R)[:, None] & (column < D)[None, :]
        acc += tl.load(weight + r[:, None] * D + column[None, :], mask, 0.0) * normed[None, :]
    tl.store(out + row * R + r, silu(tl.sum(acc, 1) + b_bias), r < R)
