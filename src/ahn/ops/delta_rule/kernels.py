"""Triton kernel of the delta rule's chunks; see `ahn.ops.delta_rule.fused`."""

from __future__ import annotations

import triton
import triton.language as tl

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


@triton.jit(do_not_specialize=["T", "chunks"])
def solve(
    key,  # [B, T, G, K]
    beta,  # [B, T, H]
    log_decay,  # [B, T, H]
    solved,  # [B, H, N, CHUNK, CHUNK], out
    total,  # [B, H, N CHUNK] float32, out: log2 of the decay since the chunk's start
    key_scale,  # [B, H, N CHUNK] float32, out
    k_b, k_t, k_g, b_b, b_t, b_h, d_b, d_t, d_h, T, chunks, H, G,
    NORMALIZE: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr,
    CHUNK: tl.constexpr, DOUBLINGS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The matrix that makes a chunk's writes of its errors: (I + A)^-1 diag(beta).

    A is strictly lower triangular: beta_i exp(decay from j to i) k_i k_j.
    """
    head, n, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, c = tl.arange(0, PADDED), tl.arange(0, CHUNK)
    t = n.to(tl.int64) * CHUNK + c
    inside = t < T
    chunk = (row * H + head) * chunks + n
    key += row * k_b + head // (H // G) * k_g
    k = tl.load(key + t[:, None] * k_t + i[None, :], inside[:, None] & (i < K)[None, :], 0.0)
    strength = tl.load(beta + row * b_b + head * b_h + t * b_t, inside, 0.0).to(tl.float32)
    a = tl.dot(k, tl.trans(k), input_precision="ieee")
    scale = tl.full((CHUNK,), 1.0, tl.float32)
    if NORMALIZE:
        scale = tl.rsqrt(tl.sum(tl.where(c[:, None] == c[None, :], a, 0.0), 1) + 1e-6)
    tl.store(key_scale + chunk * CHUNK + c, scale)
    a *= (strength * scale)[:, None] * scale[None, :]
    earlier = c[:, None] > c[None, :]
    if DECAY:
        step = tl.load(log_decay + row * d_b + head * d_h + t * d_t, inside, 0.0)
        since = tl.cumsum(step.to(tl.float32) * LOG2E, 0)
        tl.store(total + chunk * CHUNK + c, since)
        a *= tl.exp2(tl.where(earlier, since[:, None] - since[None, :], float("-inf")))
    a = tl.where(earlier, a, 0.0)
    matrix = _inverse(a, CHUNK, DOUBLINGS, DTYPE) * strength[None, :]
    square = solved + chunk * CHUNK * CHUNK
    tl.store(square + c[:, None] * CHUNK + c[None, :], matrix.to(solved.dtype.element_ty))
