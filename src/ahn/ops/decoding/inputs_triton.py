"""Triton kernel that begins a decoding step; see `ahn.ops.decoding.inputs`."""

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
    slot,  # [B or 1], out
    filled,
    keep,  # bool
    positions,
    window,
    num_sinks,
    D,
    scaling: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
):
    """A row's embedding; where its token goes and by which angles its heads turn."""
    row = tl.program_id(0)
    source = embedding + tl.load(token + row).to(tl.int64) * D
    for start in range(0, D, BLOCK):
        i = start + tl.arange(0, BLOCK)
        tl.store(hidden + row * D + i, tl.load(source + i, i < D, 0.0), i < D)
    if row < positions:
        place = tl.load(position + row)
        angle = tl.arange(0, PADDED)
        turn = place.to(tl.float32) * tl.load(frequencies + angle, angle < HALF, 0.0)
        kind = cos.dtype.element_ty
        tl.store(cos + row * HALF + angle, (tl.cos(turn) * scaling).to(kind), angle < HALF)
        tl.store(sin + row * HALF + angle, (tl.sin(turn) * scaling).to(kind), angle < HALF)
        ring = num_sinks + tl.maximum(place - num_sinks, 0) % window
        tl.store(slot + row, tl.where(place < num_sinks, place, ring))
        tl.store(filled + row, tl.minimum(place + 1, num_sinks + window))
        tl.store(keep + row, place - window >= num_sinks)
        tl.store(position + row, place + 1)
