"""Triton kernel of Mamba2's chunks; see `ahn.ops.ssd.fused`."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["T", "chunks"])
def weigh(
    key,  # [B, T, G, K]
    log_decay,  # [B, T, H]
    step,  # [B, T, H]
    total,  # [B, H, N CHUNK] float32, out: log2 of the decay since the chunk's start
    key_scale,  # [B, H, N CHUNK] float32, out
    k_b, k_t, k_g, d_b, d_t, d_h, s_b, s_t, s_h, T, chunks, H, G,
    NORMALIZE: tl.constexpr, STEP: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """A group's keys' factors, step / length, and the running sums of its heads' decays."""
    group, n, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, c = tl.arange(0, PADDED), tl.arange(0, CHUNK)
    t = n.to(tl.int64) * CHUNK + c
    inside = t < T
    length = tl.full((CHUNK,), 1.0, tl.float32)
    if NORMALIZE:
        cells = key + row * k_b + group * k_g + t[:, None] * k_t + i[None, :]
        k = tl.load(cells, inside[:, None] & (i < K)[None, :], 0.0).to(tl.float32)
        length = tl.rsqrt(tl.sum(k * k, 1) + 1e-6)
    for head in range(group * (H // G), (group + 1) * (H // G)):
        place = ((row * H + head) * chunks + n) * CHUNK + c
        scale = length
        if STEP:
            at = step + row * s_b + head * s_h + t * s_t
            scale *= tl.load(at, inside, 0.0).to(tl.float32)
        tl.store(key_scale + place, scale)
        decay = tl.load(log_decay + row * d_b + head * d_h + t * d_t, inside, 0.0)
        tl.store(total + place, tl.cumsum(decay.to(tl.float32) * LOG2E, 0))
