"""Triton kernels that carry a state over chunks of a text; see `ahn.ops.chunk_scan`.

A program holds some columns of one head's state in registers, transposed: `[COLUMNS, K]`. So the
state is the left operand of every product, which Hopper's tensor cores read from registers, and
a step's chain of products does not wait for trips through shared memory.

Shapes: B rows, T tokens, H query heads, G key-value heads, K and V head sizes (PADDED: K as a
power of two), N chunks of CHUNK tokens, P segments of `per_segment` chunks.
"""

from __future__ import annotations

import triton
import triton.language as tl

RUNTIME = ["T", "chunks", "segments", "per_segment"]  # another length compiles nothing anew


@triton.jit
def _gates(total, key_scale, chunk, c, DECAY: tl.constexpr, CHUNK: tl.constexpr):
    """Of a chunk's tokens: log decay since its start, to its end; its whole log decay; key factor.

    Logarithms are base 2.
    """
    place = chunk * CHUNK
    scale = tl.load(key_scale + place + c)
    since = tl.zeros((CHUNK,), tl.float32)
    whole = 0.0
    if DECAY:
        since = tl.load(total + place + c)
        whole = tl.load(total + place + CHUNK - 1)
    return since, whole - since, whole, scale


@triton.jit
def _written(v, k, state, solved, known_scale, DELTA: tl.constexpr):
    """What each token adds under its key, `[COLUMNS, CHUNK]`."""
    v = tl.trans(v).to(tl.float32)
    if DELTA:
        known = tl.dot(state, tl.trans(k), input_precision="ieee")
        error = (v - known * known_scale[None, :]).to(k.dtype)
        v = tl.dot(error, tl.trans(solved), input_precision="ieee")
    return v


@triton.jit(do_not_specialize=RUNTIME)
def carry(
    key,  # [B, T, G, K]
    value,  # [B, T, G, V]
    solved,  # [B, H, N, CHUNK, CHUNK]; see `ahn.ops.delta_rule.kernels`
    total,  # [B, H, N CHUNK] float32, log2 of the decay since the chunk's start
    key_scale,  # [B, H, N CHUNK] float32, of the keys
    starts,  # [B, H, P, K, V] float32: the first is given, the others are out
    moves,  # float32, out: [B, H, P, K, K] of the delta rule, [B, H, P] of others, there log2
    k_b, k_t, k_g, v_b, v_t, v_g, T, chunks, segments, per_segment, H, G,
    DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    PADDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What a segment adds to a state and, of the delta rule, the matrix it multiplies it by.

    The first segment goes from the state itself, the others from zeros. Programs beyond the
    columns of V start from columns of the identity and are given no values.
    """
    head, block, segment = tl.program_id(0) % H, tl.program_id(0) // H, tl.program_id(1)
    BLOCKS: tl.constexpr = (V + COLUMNS - 1) // COLUMNS
    is_value = block < BLOCKS
    if (segment == 0) & (block >= BLOCKS):
        return
    row = tl.program_id(2).to(tl.int64)
    place = (row * H + head) * segments + segment
    i, c = tl.arange(0, PADDED), tl.arange(0, CHUNK)
    j = tl.where(is_value, block, block - BLOCKS) * COLUMNS + tl.arange(0, COLUMNS)
    columns = (j < V) & is_value
    cells = (place * K + i[None, :]) * V + j[:, None]
    inner = (i < K)[None, :]
    state = tl.load(starts + cells, columns[:, None] & inner & (segment == 0), 0.0)
    state += tl.where((j[:, None] == i[None, :]) & (block >= BLOCKS), 1.0, 0.0)
    key += row * k_b + head // (H // G) * k_g
    value += row * v_b + head // (H // G) * v_g
    decay = 0.0
    for n in range(segment * per_segment, (segment + 1) * per_segment):
        start, chunk = tl.cast(n, tl.int64) * CHUNK, (row * H + head) * chunks + n
        inside = (c < T - n * CHUNK)[:, None]
        k = tl.load(key + start * k_t + (c[:, None] * k_t + i[None, :]), inside & inner, 0.0)
        v = tl.load(
            value + start * v_t + (c[:, None] * v_t + j[None, :]), inside & columns[None, :], 0.0
        )
        matrix = k
        if DELTA:
            square = solved + chunk * CHUNK * CHUNK
            matrix = tl.load(square + (c[:, None] * CHUNK + c[None, :]))
        since, to_end, whole, scale = _gates(total, key_scale, chunk, c, DECAY, CHUNK)
        known_scale = tl.exp2(since) * scale
        new = _written(v, k, state.to(k.dtype), matrix, known_scale, DELTA)
        new = (new * (tl.exp2(to_end) * scale)[None, :]).to(k.dtype)
        state = tl.dot(new, k, state * tl.exp2(whole), input_precision="ieee")
        decay += whole
    if is_value:
        after = (place + 1) * K * V + i[None, :] * V + j[:, None]
        tl.store(starts + after, state, columns[:, None] & inner)
        if (not DELTA) & (block == 0):
            tl.store(moves + place, decay)
    else:
        to = (place * K + i[None, :]) * K + j[:, None]
        tl.store(moves + to, state, (j < K)[:, None] & inner)


@triton.jit(do_not_specialize=["segments"])
def join(
    starts, moves, segments,
    DELTA: tl.constexpr, K: tl.constexpr, V: tl.constexpr, PADDED: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """From what segments do to a state to the state each starts from, in place."""
    head = tl.program_id(1).to(tl.int64) * segments
    i, j = tl.arange(0, PADDED), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    both = (i < K)[:, None] & (j < V)[None, :]
    square = (i < K)[:, None] & (i < K)[None, :]
    cells = i[:, None] * V + j[None, :]
    state = tl.load(starts + (head + 1) * K * V + cells, both, 0.0)
    for n in range(1, segments - 1):
        added = tl.load(starts + (head + n + 1) * K * V + cells, both, 0.0)
        if DELTA:
            move = tl.load(moves + (head + n) * K * K + i[:, None] * K + i[None, :], square, 0.0)
            state = tl.dot(move, state, input_precision="tf32x3") + added
        else:
            state = state * tl.exp2(tl.load(moves + head + n)) + added
        tl.store(starts + (head + n + 1) * K * V + cells, state, both)


@triton.jit(do_not_specialize=RUNTIME)
def read(
    query,  # [B, T, H, K]
    key, value, solved, total, key_scale,
    starts,  # [B, H, P, K, V] float32
    out,  # [B, T, H, V]
    final,  # [B, H, K, V] float32, out
    scale, q_b, q_t, q_h, k_b, k_t, k_g, v_b, v_t, v_g, T, chunks, segments, per_segment, H, G,
    NORMALIZE: tl.constexpr, DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What the queries of a segment read, from the state that it starts from."""
    head, block, segment = tl.program_id(0) % H, tl.program_id(0) // H, tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    i, c = tl.arange(0, PADDED), tl.arange(0, CHUNK)
    j = block * COLUMNS + tl.arange(0, COLUMNS)
    columns, inner = (j < V)[None, :], (i < K)[None, :]
    both = (j < V)[:, None] & inner
    cells = i[None, :] * V + j[:, None]
    state = tl.load(starts + ((row * H + head) * segments + segment) * K * V + cells, both, 0.0)
    query += row * q_b + head * q_h
    key += row * k_b + head // (H // G) * k_g
    value += row * v_b + head // (H // G) * v_g
    out += (row * T * H + head) * V
    for n in range(segment * per_segment, tl.minimum((segment + 1) * per_segment, chunks)):
        start, chunk = tl.cast(n, tl.int64) * CHUNK, (row * H + head) * chunks + n
        inside = (c < T - n * CHUNK)[:, None]
        k = tl.load(key + start * k_t + (c[:, None] * k_t + i[None, :]), inside & inner, 0.0)
        v = tl.load(value + start * v_t + (c[:, None] * v_t + j[None, :]), inside & columns, 0.0)
        q = tl.load(query + start * q_t + (c[:, None] * q_t + i[None, :]), inside & inner, 0.0)
        matrix = k
        if DELTA:
            square = solved + chunk * CHUNK * CHUNK
            matrix = tl.load(square + (c[:, None] * CHUNK + c[None, :]))
        since, to_end, whole, k_scale = _gates(total, key_scale, chunk, c, DECAY, CHUNK)
        q_scale = tl.full((CHUNK,), scale, tl.float32)
        if NORMALIZE:
            long = q.to(tl.float32)
            q_scale *= tl.rsqrt(tl.sum(long * long, 1) + 1e-6)
        # Rows are the writing tokens, columns the reading ones.
        past = c[:, None] <= c[None, :]
        decay = tl.exp2(tl.where(past, since[None, :] - since[:, None], float("-inf")))
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")
        scores = (scores * decay * k_scale[:, None]).to(k.dtype)
        rounded, kept = state.to(k.dtype), tl.exp2(since)
        got = tl.dot(rounded, tl.trans(q), input_precision="ieee") * kept[None, :]
        new = _written(v, k, rounded, matrix, kept * k_scale, DELTA)
        got = tl.dot(new.to(k.dtype), scores, got, input_precision="ieee")
        got = tl.trans(got * q_scale[None, :]).to(out.dtype.element_ty)
        tl.store(out + start * H * V + (c[:, None] * H * V + j[None, :]), got, inside & columns)
        new = (new * (tl.exp2(to_end) * k_scale)[None, :]).to(k.dtype)
        state = tl.dot(new, k, state * tl.exp2(whole), input_precision="ieee")
    if segment == segments - 1:
        tl.store(final + (row * H + head) * K * V + cells, state, both)
