"""Triton kernel of the inputs of a decoding step; see `ahn.ops.decoding.inputs`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def embed_and_place_kernel(
    token,  # [B]
    position,  # [B or 1], in place
    embedding,  # [vocabulary, D]
    frequencies,  # [K / 2] float32
    hidden,  # [B, D], out
    cos,  # [B or 1, K / 2], out
    sin,
    ring_index,  # [B or 1], out
    filled,
    write_mask,  # [B or 1, 1] bool, out
    positions,
    window,
    num_sinks,
    D,
    scaling: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
):
    """A row's embedding; the place of its token in the ring; cosine and sine of its angles."""
    row = tl.program_id(0)
    source = embedding + tl.load(token + row).to(tl.int64) * D
    for start in range(0, D, BLOCK):
        i = start + tl.arange(0, BLOCK)
        tl.store(hidden + row * D + i, tl.load(source + i, i < D, 0.0), i < D)
    if row < positions:
        t = tl.load(position + row)
        pair = tl.arange(0, PADDED)
        angle = t.to(tl.float32) * tl.load(frequencies + pair, pair < HALF, 0.0)
        dtype = cos.dtype.element_ty
        tl.store(cos + row * HALF + pair, (tl.cos(angle) * scaling).to(dtype), pair < HALF)
        tl.store(sin + row * HALF + pair, (tl.sin(angle) * scaling).to(dtype), pair < HALF)
        behind_sinks = num_sinks + tl.maximum(t - num_sinks, 0) % window
        tl.store(ring_index + row, tl.where(t < num_sinks, t, behind_sinks))
        tl.store(filled + row, tl.minimum(t + 1, num_sinks + window))
        tl.store(write_mask + row, t - window >= num_sinks)
        tl.store(position + row, t + 1)
