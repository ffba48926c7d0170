"""What the kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

RUNTIME = ["T", "chunks", "segments", "per_segment"]  # another length compiles nothing anew


@triton.jit
def rows(base, start, stride, r, columns, inside):
    """Tile of the rows from `start`, `[rows, columns]`; zeros where not `inside`."""
    return tl.load(base + start * stride + (r[:, None] * stride + columns[None, :]), inside, 0.0)


@triton.jit
def square(base, chunk, c, CHUNK: tl.constexpr):
    """A chunk's matrix, `[CHUNK, CHUNK]`."""
    return tl.load(base + chunk * CHUNK * CHUNK + (c[:, None] * CHUNK + c[None, :]))


@triton.jit
def decays(total, place, c, DECAY: tl.constexpr, CHUNK: tl.constexpr):
    """Factors by which a chunk decays: from its start to each token, to its end, over all of it."""
    since, whole = tl.zeros((CHUNK,), tl.float32), 0.0
    if DECAY:
        since = tl.load(total + place + c)
        whole = tl.load(total + place + CHUNK - 1)
    return tl.exp2(since), tl.exp2(whole - since), tl.exp2(whole)


@triton.jit
def decay_between(since, c, DECAY: tl.constexpr, CHUNK: tl.constexpr):
    """Decay from column to row, `[CHUNK, CHUNK]`; 0 where the column is later."""
    past = c[:, None] >= c[None, :]
    decay = tl.where(past, 1.0, 0.0)
    if DECAY:
        # The mask comes first: of later columns the exponent is positive and may overflow.
        decay = tl.exp2(tl.where(past, since[:, None] - since[None, :], float("-inf")))
    return decay


@triton.jit
def errors(v, k, state, strength, known_scale, DELTA: tl.constexpr):
    """What each token wants changed under its key, `[CHUNK, COLUMNS]` float32."""
    v = v.to(tl.float32)
    if DELTA:
        v -= tl.dot(k, state, input_precision="ieee") * known_scale[:, None]
    return v * strength[:, None]
