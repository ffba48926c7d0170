"""Triton kernels of linear layers for one token a row; see `ahn.ops.gemv` for the contract.

A decoding step reads every weight once, so the time is bound by memory bandwidth. A program
prefetches its first weights before the previous kernel has ended (`ahn.ops.dependent_launch`).
Shapes: B rows, D input size, R output size. One launch computes several linear layers; their
weights, biases and sizes are tuples with one entry each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.dependent_launch import launch_dependents, wait_for_prerequisites


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _select_linear(
    i_p, weights, biases, first_blocks: tl.constexpr, sizes: tl.constexpr, columns: tl.constexpr,
    has_bias: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The linear layer of a program: weight, bias, first program, size, first output column."""
    weight, bias = weights[0], biases[0]
    first, size, column, is_biased = 0, sizes[0], 0, has_bias[0]
    for n in tl.static_range(1, COUNT):
        if i_p >= first_blocks[n]:
            weight, bias = weights[n], biases[n]
            first, size, column, is_biased = first_blocks[n], sizes[n], columns[n], has_bias[n]
    return weight, bias, first, size, column, is_biased


@triton.jit
def _load(
    pointers, row_mask, columns, D: tl.constexpr, HAS_NORM: tl.constexpr, SWIGLU: tl.constexpr
):
    """A block of a weight's rows at `columns`, of the up projection's, and of the norm's weight."""
    weight, up, norm = pointers
    mask = row_mask[:, None] & (columns < D)[None, :]
    b_weight = tl.load(weight + columns[None, :], mask, 0.0)
    b_up = tl.load(up + columns[None, :], mask, 0.0) if SWIGLU else 0.0
    b_norm = tl.load(norm + columns, columns < D, 0.0) if HAS_NORM else 0.0
    return b_weight, b_up, b_norm


@triton.jit
def _accumulate(
    sums, block, x, columns, D: tl.constexpr, HAS_NORM: tl.constexpr, SWIGLU: tl.constexpr
):
    """Add the products of a block of weights and the input at `columns` to the sums."""
    acc, up_acc, squares = sums
    b_x = tl.load(x + columns, columns < D, 0.0).to(tl.float32)
    if HAS_NORM:
        squares += b_x * b_x
        b_x = b_x * block[2].to(tl.float32)
    acc += block[0].to(tl.float32) * b_x[None, :]
    if SWIGLU:
        up_acc += block[1].to(tl.float32) * b_x[None, :]
    return acc, up_acc, squares


@triton.jit
def _append(blocks, block):
    return blocks + (block,)


@triton.jit
def gemv(
    x,  # [1, D]
    norm,  # [D]; read only with HAS_NORM
    weights,  # [R_n, D]
    biases,  # [R_n]
    up_weight,  # [R, D], with SWIGLU: the up projection beside the gate projection
    residual,  # [1, R], with HAS_RESIDUAL
    out,  # [1, sum of R_n]
    first_blocks: tl.constexpr,  # the first program of each linear layer
    sizes: tl.constexpr, columns: tl.constexpr, has_bias: tl.constexpr, eps: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PREFETCH: tl.constexpr,  # blocks that are loaded before the input is known
    COUNT: tl.constexpr, UNROLLED: tl.constexpr, HAS_NORM: tl.constexpr, SWIGLU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """ROWS output numbers, each the dot product of a weight's row with the single input row."""
    weight, bias, first, size, column, is_biased = _select_linear(
        tl.program_id(0), weights, biases, first_blocks, sizes, columns, has_bias, COUNT
    )
    r, i = (tl.program_id(0) - first) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    row_mask, offset = r < size, r[:, None] * D
    pointers = (weight + offset, up_weight + offset, norm)
    launch_dependents(PDL)
    blocks = ()
    for n in tl.static_range(PREFETCH):
        blocks = _append(blocks, _load(pointers, row_mask, n * BLOCK + i, D, HAS_NORM, SWIGLU))
    shift = tl.load(bias + r, row_mask & (is_biased != 0), 0.0).to(tl.float32)
    wait_for_prerequisites(PDL)
    if HAS_RESIDUAL:  # loaded before the reductions, at which the warps of a program synchronise
        shift += tl.load(residual + r, row_mask, 0.0).to(tl.float32)
    zeros = tl.zeros((ROWS, BLOCK), tl.float32)
    sums = (zeros, zeros, tl.zeros((BLOCK,), tl.float32))
    if UNROLLED:
        for n in tl.static_range((D + BLOCK - 1) // BLOCK):
            sums = _accumulate(sums, blocks[n], x, n * BLOCK + i, D, HAS_NORM, SWIGLU)
            if (n + PREFETCH) * BLOCK < D:
                later = (n + PREFETCH) * BLOCK + i
                blocks = _append(blocks, _load(pointers, row_mask, later, D, HAS_NORM, SWIGLU))
    else:
        for start in range(0, D, PREFETCH * BLOCK):
            loaded = ()
            for n in tl.static_range(PREFETCH):
                now, later = start + n * BLOCK + i, start + (n + PREFETCH) * BLOCK + i
                sums = _accumulate(sums, blocks[n], x, now, D, HAS_NORM, SWIGLU)
                loaded = _append(loaded, _load(pointers, row_mask, later, D, HAS_NORM, SWIGLU))
            blocks = loaded
    acc, up_acc, squares = sums
    result, rms_factor = tl.sum(acc, 1), 1.0
    if HAS_NORM:
        rms_factor = tl.rsqrt(tl.sum(squares, 0) / D + eps)
        result = result * rms_factor
    if SWIGLU:
        result = silu(result) * (tl.sum(up_acc, 1) * rms_factor)
    tl.store(out + column + r, (result + shift).to(out.dtype.element_ty), row_mask)


@triton.jit
def skinny_gemm(
    x,  # [B, D], after the norm
    weights, biases, up_weight,  # as in `gemv`
    residual,  # [B, R]
    out,  # [B, sum of R_n]
    batch,
    first_blocks: tl.constexpr, sizes: tl.constexpr, columns: tl.constexpr, has_bias: tl.constexpr,
    D: tl.constexpr,
    OUT: tl.constexpr,  # width of the output
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BATCH: tl.constexpr, COUNT: tl.constexpr,
    PRECISION: tl.constexpr, SWIGLU: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As `gemv` for up to BATCH input rows, by matrix products."""
    weight, bias, first, size, column, is_biased = _select_linear(
        tl.program_id(0), weights, biases, first_blocks, sizes, columns, has_bias, COUNT
    )
    r, i = (tl.program_id(0) - first) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    b = tl.arange(0, BATCH)
    out_offset = b[:, None] * OUT + column + r[None, :]
    mask = (b < batch)[:, None] & (r < size)[None, :]
    launch_dependents(PDL)
    shift = tl.load(bias + r, (r < size) & (is_biased != 0), 0.0).to(tl.float32)[None, :]
    wait_for_prerequisites(PDL)
    if HAS_RESIDUAL:
        shift += tl.load(residual + out_offset, mask, 0.0).to(tl.float32)
    acc, up_acc = (tl.zeros((BATCH, ROWS), tl.float32),) * 2
    for start in range(0, D, BLOCK):
        x_mask = (b < batch)[:, None] & (start + i < D)[None, :]
        b_x = tl.load(x + b[:, None] * D + start + i[None, :], x_mask, 0.0)
        weight_mask = (r < size)[None, :] & (start + i < D)[:, None]
        offset = r[None, :] * D + start + i[:, None]
        b_weight = tl.load(weight + offset, weight_mask, 0.0)
        acc = tl.dot(b_x, b_weight, acc, input_precision=PRECISION)
        if SWIGLU:
            b_weight = tl.load(up_weight + offset, weight_mask, 0.0)
            up_acc = tl.dot(b_x, b_weight, up_acc, input_precision=PRECISION)
    if SWIGLU:
        acc = silu(acc) * up_acc
    tl.store(out + out_offset, (acc + shift).to(out.dtype.element_ty), mask)
