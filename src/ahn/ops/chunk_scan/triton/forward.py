"""Triton kernels that carry a state over the chunks of a text and read from it."""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.chunk_scan.triton.common import RUNTIME, decays, errors, rows, square


@triton.jit(do_not_specialize=RUNTIME)
def carry(
    query, key, value, q_b, q_t, q_h, k_b, k_t, k_g, v_b, v_t, v_g,
    query_scale, key_scale, strength, total, scores, solved,
    starts,  # [B, H, P, K, V] float32: the first is given, the others are out
    moves,  # float32, out: [B, H, P, K, K] of the delta rule, [B, H, P] of others
    T, chunks, H, G, segments, per_segment,
    DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    PADDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What a segment adds to a state, and the matrix or number it multiplies it by.

    The first segment goes from the state itself, the others from zeros. Programs beyond the
    columns of V start from columns of the identity and are given no values.
    """
    head, block, segment = tl.program_id(0) % H, tl.program_id(0) // H, tl.program_id(1)
    BLOCKS: tl.constexpr = (V + COLUMNS - 1) // COLUMNS
    is_value = block < BLOCKS
    if (segment == 0) & (block >= BLOCKS):
        return
    row = tl.program_id(2).to(tl.int64)
    i, c = tl.arange(0, PADDED), tl.arange(0, CHUNK)
    j = tl.where(is_value, block, block - BLOCKS) * COLUMNS + tl.arange(0, COLUMNS)
    inner, columns = i < K, (j < V) & is_value
    both = inner[:, None] & columns[None, :]
    cells = i[:, None] * V + j[None, :]
    to = (row * H + head) * segments + segment
    state = tl.load(starts + to * K * V + cells, both & (segment == 0), 0.0)
    state += tl.where((i[:, None] == j[None, :]) & (block >= BLOCKS), 1.0, 0.0)
    key += row * k_b + head // (H // G) * k_g
    value += row * v_b + head // (H // G) * v_g
    move = 1.0
    for n in range(segment * per_segment, (segment + 1) * per_segment):
        start, chunk = tl.cast(n, tl.int64) * CHUNK, (row * H + head) * chunks + n
        place, inside = chunk * CHUNK, (c < T - n * CHUNK)[:, None]
        k = rows(key, start, k_t, c, i, inside & inner[None, :])
        v = rows(value, start, v_t, c, j, inside & columns[None, :])
        kept, to_end, whole = decays(total, place, c, DECAY, CHUNK)
        k_scale, strong = tl.load(key_scale + place + c), tl.load(strength + place + c)
        new = errors(v, k, state.to(k.dtype), strong, kept * k_scale, DELTA)
        if DELTA:
            new = tl.dot(square(solved, chunk, c, CHUNK), new.to(k.dtype), input_precision="ieee")
        new = (new * (to_end * k_scale)[:, None]).to(k.dtype)
        state = tl.dot(tl.trans(k), new, state * whole, input_precision="ieee")
        move *= whole
    if is_value:
        tl.store(starts + (to + 1) * K * V + cells, state, both)
        if (not DELTA) & (block == 0):
            tl.store(moves + to, move)
    else:
        cells = i[:, None] * K + j[None, :]
        tl.store(moves + to * K * K + cells, state, inner[:, None] & (j < K)[None, :])


@triton.jit(do_not_specialize=["segments"])
def join(
    states,  # [B, H, P, K, V] float32
    moves, segments,
    DELTA: tl.constexpr, BACK: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Make of what segments add to a state the state itself, in place, from the second on.

    Forward it is the state that a segment starts from; BACK, from the last to the first, the
    gradient of the state that it ends with, which moves transposed carry.
    """
    first = tl.program_id(1).to(tl.int64) * segments
    i, j = tl.arange(0, PADDED), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    both = (i < K)[:, None] & (j < V)[None, :]
    cells = i[:, None] * V + j[None, :]
    from_ = i[:, None] if BACK else i[None, :]
    to = i[None, :] if BACK else i[:, None]
    at = segments - 2 if BACK else 1
    state = tl.load(states + (first + at) * K * V + cells, both, 0.0)
    for _ in range(1, segments - 1):
        after = at - 1 if BACK else at + 1
        added = tl.load(states + (first + after) * K * V + cells, both, 0.0)
        if DELTA:
            square = (first + at) * K * K + to * K + from_
            move = tl.load(moves + square, (i < K)[:, None] & (i < K)[None, :], 0.0)
            state = tl.dot(move, state, input_precision="tf32x3") + added
        else:
            state = state * tl.load(moves + first + at) + added
        tl.store(states + (first + after) * K * V + cells, state, both)
        at = after


@triton.jit(do_not_specialize=RUNTIME)
def read(
    query, key, value, q_b, q_t, q_h, k_b, k_t, k_g, v_b, v_t, v_g,
    query_scale, key_scale, strength, total, scores, solved,
    starts,  # [B, H, P, K, V] float32
    out,  # [B, T, H, V]
    final,  # [B, H, K, V] float32, out
    T, chunks, H, G, segments, per_segment,
    DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    PADDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What the queries of a segment read, from the state that it starts from."""
    head, block, segment = tl.program_id(0) % H, tl.program_id(0) // H, tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    i, c = tl.arange(0, PADDED), tl.arange(0, CHUNK)
    j = block * COLUMNS + tl.arange(0, COLUMNS)
    inner, columns = (i < K)[None, :], (j < V)[None, :]
    both = (i < K)[:, None] & columns
    cells = i[:, None] * V + j[None, :]
    state = tl.load(starts + ((row * H + head) * segments + segment) * K * V + cells, both, 0.0)
    query += row * q_b + head * q_h
    key += row * k_b + head // (H // G) * k_g
    value += row * v_b + head // (H // G) * v_g
    out += (row * T * H + head) * V
    for n in range(segment * per_segment, tl.minimum((segment + 1) * per_segment, chunks)):
        start, chunk = tl.cast(n, tl.int64) * CHUNK, (row * H + head) * chunks + n
        place, inside = chunk * CHUNK, (c < T - n * CHUNK)[:, None]
        k = rows(key, start, k_t, c, i, inside & inner)
        q = rows(query, start, q_t, c, i, inside & inner)
        # What is loaded under a condition is not prefetched; with room for that in shared memory
        # a multiprocessor would hold one program only.
        if chunks > 0:
            v = rows(value, start, v_t, c, j, inside & columns)
        else:
            v = tl.zeros((CHUNK, COLUMNS), value.dtype.element_ty)
        kept, to_end, whole = decays(total, place, c, DECAY, CHUNK)
        k_scale, strong = tl.load(key_scale + place + c), tl.load(strength + place + c)
        rounded = state.to(k.dtype)
        got = tl.dot(q, rounded, input_precision="ieee")
        got *= (kept * tl.load(query_scale + place + c))[:, None]
        new = errors(v, k, rounded, strong, kept * k_scale, DELTA)
        error = new.to(k.dtype)
        got = tl.dot(square(scores, chunk, c, CHUNK), error, got, input_precision="ieee")
        got = got.to(out.dtype.element_ty)
        tl.store(out + start * H * V + (c[:, None] * H * V + j[None, :]), got, inside & columns)
        if DELTA:
            new = tl.dot(square(solved, chunk, c, CHUNK), error, input_precision="ieee")
        new = (new * (to_end * k_scale)[:, None]).to(k.dtype)
        state = tl.dot(tl.trans(k), new, state * whole, input_precision="ieee")
    if segment == segments - 1:
        tl.store(final + (row * H + head) * K * V + cells, state, both)
