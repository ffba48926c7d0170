"""Triton kernel that makes of keys, queries and gates what a chunk needs, whatever its state."""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.chunk_scan.triton.common import decay_between, rows

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _inverse(a, SIZE: tl.constexpr, DOUBLINGS: tl.constexpr, DTYPE: tl.constexpr):
    """(I + a)^-1 for a strictly lower triangular `[SIZE, SIZE]`: blocks double until they are one.

    The inverse of [[A, 0], [C, B]] is [[A^-1, 0], [-B^-1 C A^-1, B^-1]]. For keys of length one
    no entry is much larger than 1, so half precision has room, and it is three bits finer than
    bfloat16.
    """
    i = tl.arange(0, SIZE)
    apart = i[:, None] ^ i[None, :]  # its highest bit tells the blocks that part row from column
    inverse = tl.where(apart == 0, 1.0, 0.0) - tl.where(apart == 1, a, 0.0)
    for doubling in tl.static_range(1, DOUBLINGS):
        between = tl.where((apart >> doubling) == 1, a, 0.0).to(DTYPE)
        known = inverse.to(DTYPE)
        moved = tl.dot(known, between, input_precision="ieee").to(DTYPE)
        inverse -= tl.dot(moved, known, input_precision="ieee")
    return inverse


@triton.jit
def _sizes(squares, NORMALIZE: tl.constexpr, CHUNK: tl.constexpr):
    """What makes rows of these squared lengths as long as 1."""
    sizes = tl.full((CHUNK,), 1.0, tl.float32)
    if NORMALIZE:
        sizes = tl.rsqrt(squares + 1e-6)
    return sizes


@triton.jit(do_not_specialize=["T", "chunks", "s_b", "d_b"])
def prepare(
    query, key, q_b, q_t, q_h, k_b, k_t, k_g,
    write_strength, s_b, s_t, s_h,  # [B, T, H]
    log_decay, d_b, d_t, d_h,  # [B, T, H]
    query_scale, key_scale, strength, total, scores, solved,  # out
    scale, T, chunks, H, G,
    NORMALIZE: tl.constexpr, DELTA: tl.constexpr, DECAY: tl.constexpr, STRENGTH: tl.constexpr,
    K: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, DOUBLINGS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Factors of one chunk and head, and its two matrices.

    `solved` makes a chunk's writes of its errors, (I + A)^-1, where A is strictly lower
    triangular: strength_i exp(decay from j to i) k_i k_j. `scores` makes what is read of errors.
    """
    head, n, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, c = tl.arange(0, PADDED), tl.arange(0, CHUNK)
    start = n.to(tl.int64) * CHUNK
    t = start + c
    inside = t < T
    both = inside[:, None] & (i < K)[None, :]
    k = rows(key + row * k_b + head // (H // G) * k_g, start, k_t, c, i, both)
    q = rows(query + row * q_b + head * q_h, start, q_t, c, i, both)
    chunk = (row * H + head) * chunks + n
    place = chunk * CHUNK + c
    alike = tl.dot(k, tl.trans(k), input_precision="ieee")
    diagonal = c[:, None] == c[None, :]
    k_scale = _sizes(tl.sum(tl.where(diagonal, alike, 0.0), 1), NORMALIZE, CHUNK)
    long = q.to(tl.float32)
    q_scale = _sizes(tl.sum(long * long, 1), NORMALIZE, CHUNK)
    strong = tl.where(inside, 1.0, 0.0)
    if STRENGTH:
        strong = tl.load(write_strength + row * s_b + head * s_h + t * s_t, inside, 0.0)
        strong = strong.to(tl.float32)
    since = tl.zeros((CHUNK,), tl.float32)
    if DECAY:
        step = tl.load(log_decay + row * d_b + head * d_h + t * d_t, inside, 0.0)
        since = tl.cumsum(step.to(tl.float32) * LOG2E, 0)
        tl.store(total + place, since)
    tl.store(query_scale + place, q_scale * scale)
    tl.store(key_scale + place, k_scale)
    tl.store(strength + place, strong)
    between = decay_between(since, c, DECAY, CHUNK) * k_scale[None, :]
    read = tl.dot(q, tl.trans(k), input_precision="ieee") * (between * q_scale[:, None])
    square = chunk * CHUNK * CHUNK + (c[:, None] * CHUNK + c[None, :])
    if DELTA:
        a = tl.where(diagonal, 0.0, alike * between * (strong * k_scale)[:, None])
        inverse = _inverse(a, CHUNK, DOUBLINGS, DTYPE)
        tl.store(solved + square, inverse.to(solved.dtype.element_ty))
        read = tl.dot(read.to(DTYPE), inverse.to(DTYPE), input_precision="ieee")
    tl.store(scores + square, (read * scale).to(scores.dtype.element_ty))
