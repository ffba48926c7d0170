"""Triton kernels of linear maps of one token a row; see `ahn.ops.gemv` for the contract.

A decoding step reads every weight once, so these kernels are measured by bytes: a program's first
weights are on their way before the previous kernel has ended.
Shapes: B rows, D input size, R output size; maps are tuples, one entry each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.overlap import let_next_start, wait_for_previous


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _choose(
    block, weights, biases, first_blocks: tl.constexpr, sizes: tl.constexpr, columns: tl.constexpr,
    has_bias: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The map a program works on: weight, bias, its first block, size, column of the output."""
    weight, bias = weights[0], biases[0]
    first, size, column, biased = 0, sizes[0], 0, has_bias[0]
    for n in tl.static_range(1, COUNT):
        if block >= first_blocks[n]:
            weight, bias = weights[n], biases[n]
            first, size, column, biased = first_blocks[n], sizes[n], columns[n], has_bias[n]
    return weight, bias, first, size, column, biased


@triton.jit
def _block(known, inside, columns, D: tl.constexpr, NORMED: tl.constexpr, PAIRED: tl.constexpr):
    """At `columns`: a weight's rows, the other one's of a PAIRED map, the norm of a NORMED one."""
    weight, second, norm = known
    some = inside[:, None] & (columns < D)[None, :]
    block = tl.load(weight + columns[None, :], some, 0.0)
    other = tl.load(second + columns[None, :], some, 0.0) if PAIRED else 0.0
    scale = tl.load(norm + columns, columns < D, 0.0) if NORMED else 0.0
    return block, other, scale


@triton.jit
def _add_block(
    sums, block, x, columns, D: tl.constexpr, NORMED: tl.constexpr, PAIRED: tl.constexpr
):
    """The sums, with the input's numbers at `columns` and a block of weights counted in."""
    total, total_other, squares = sums
    part = tl.load(x + columns, columns < D, 0.0).to(tl.float32)
    if NORMED:
        squares += part * part
        part = part * block[2].to(tl.float32)
    total += block[0].to(tl.float32) * part[None, :]
    if PAIRED:
        total_other += block[1].to(tl.float32) * part[None, :]
    return total, total_other, squares


@triton.jit
def _and(some, one):
    return some + (one,)


@triton.jit
def gemv(
    x,  # [1, D]
    norm,  # [D]; nothing is read where the map is not NORMED
    weights,  # [R_n, D]
    biases,  # [R_n]
    second,  # [R, D], the other weight of a PAIRED map
    residual,  # [1, R] of an ADDED one
    out,  # [1, sum of R_n]
    first_blocks: tl.constexpr,  # of each map, in programs
    sizes: tl.constexpr,
    columns: tl.constexpr,
    has_bias: tl.constexpr,
    eps: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,  # blocks that a program asks for before it knows the input
    COUNT: tl.constexpr,
    UNROLLED: tl.constexpr,
    NORMED: tl.constexpr,
    PAIRED: tl.constexpr,
    ADDED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """ROWS numbers of the output, each the product of a weight's row and the only input."""
    weight, bias, first, size, column, biased = _choose(
        tl.program_id(0), weights, biases, first_blocks, sizes, columns, has_bias, COUNT
    )
    r, i = (tl.program_id(0) - first) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside, place = r < size, r[:, None] * D
    known = (weight + place, second + place, norm)
    let_next_start(OVERLAP)
    blocks = ()
    for n in tl.static_range(AHEAD):
        blocks = _and(blocks, _block(known, inside, n * BLOCK + i, D, NORMED, PAIRED))
    shift = tl.load(bias + r, inside & (biased != 0), 0.0).to(tl.float32)
    wait_for_previous(OVERLAP)
    if ADDED:  # asked for before the sums, where programs wait for each other
        shift += tl.load(residual + r, inside, 0.0).to(tl.float32)
    zeros = tl.zeros((ROWS, BLOCK), tl.float32)
    sums = (zeros, zeros, tl.zeros((BLOCK,), tl.float32))
    if UNROLLED:
        for n in tl.static_range((D + BLOCK - 1) // BLOCK):
            sums = _add_block(sums, blocks[n], x, n * BLOCK + i, D, NORMED, PAIRED)
            if (n + AHEAD) * BLOCK < D:
                later = (n + AHEAD) * BLOCK + i
                blocks = _and(blocks, _block(known, inside, later, D, NORMED, PAIRED))
    else:
        for start in range(0, D, AHEAD * BLOCK):
            new = ()
            for n in tl.static_range(AHEAD):
                now, later = start + n * BLOCK + i, start + (n + AHEAD) * BLOCK + i
                sums = _add_block(sums, blocks[n], x, now, D, NORMED, PAIRED)
                new = _and(new, _block(known, inside, later, D, NORMED, PAIRED))
            blocks = new
    total, total_other, squares = sums
    result, factor = tl.sum(total, 1), 1.0
    if NORMED:
        factor = tl.rsqrt(tl.sum(squares, 0) / D + eps)
        result = result * factor
    if PAIRED:
        result = silu(result) * (tl.sum(total_other, 1) * factor)
    tl.store(out + column + r, (result + shift).to(out.dtype.element_ty), inside)


@triton.jit
def skinny_gemm(
    x,  # [B, D], normed already
    weights,  # this and the following as in `gemv`
    biases,
    second,
    residual,  # [B, R]
    out,  # [B, sum of R_n]
    batch,
    first_blocks: tl.constexpr,
    sizes: tl.constexpr,
    columns: tl.constexpr,
    has_bias: tl.constexpr,
    D: tl.constexpr,
    OUT: tl.constexpr,  # size of a row of the output
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BATCH: tl.constexpr,
    COUNT: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRED: tl.constexpr,
    ADDED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """As `gemv`, for up to BATCH inputs by matrix products."""
    weight, bias, first, size, column, biased = _choose(
        tl.program_id(0), weights, biases, first_blocks, sizes, columns, has_bias, COUNT
    )
    r, i = (tl.program_id(0) - first) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    b = tl.arange(0, BATCH)
    places = b[:, None] * OUT + column + r[None, :]
    inside = (b < batch)[:, None] & (r < size)[None, :]
    let_next_start(OVERLAP)
    shift = tl.load(bias + r, (r < size) & (biased != 0), 0.0).to(tl.float32)[None, :]
    wait_for_previous(OVERLAP)
    if ADDED:
        shift += tl.load(residual + places, inside, 0.0).to(tl.float32)
    total, total_other = (tl.zeros((BATCH, ROWS), tl.float32),) * 2
    for start in range(0, D, BLOCK):
        known = (b < batch)[:, None] & (start + i < D)[None, :]
        part = tl.load(x + b[:, None] * D + start + i[None, :], known, 0.0)
        some = (r < size)[None, :] & (start + i < D)[:, None]
        place = r[None, :] * D + start + i[:, None]
        w = tl.load(weight + place, some, 0.0)
        total = tl.dot(part, w, total, input_precision=PRECISION)
        if PAIRED:
            w = tl.load(second + place, some, 0.0)
            total_other = tl.dot(part, w, total_other, input_precision=PRECISION)
    if PAIRED:
        total = silu(total) * total_other
    tl.store(out + places, (total + shift).to(out.dtype.element_ty), inside)
