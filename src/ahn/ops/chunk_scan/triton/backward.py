"""Triton kernels that carry gradients of a state back over the chunks of a text.

Of a chunk that starts from S and ends with S', with keys and queries scaled, all decays left out
here (arXiv 2412.06464, section 3.3): errors e = b (v - k S), writes u = M e with M = (I + A)^-1,
out = q S + (P M) e, S' = S + k^T u. So, `d` telling gradients:

    de = (P M)^T dout + M^T k dS',  dS = dS' + q^T dout - k^T (b de).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.chunk_scan.triton.common import RUNTIME, decays, errors, rows, square


@triton.jit(do_not_specialize=RUNTIME)
def retrace(
    query, key, value, q_b, q_t, q_h, k_b, k_t, k_g, v_b, v_t, v_g,
    query_scale, key_scale, strength, total, scores, solved,
    starts,  # [B, H, P, K, V] float32
    states,  # [B, H, N, K, V], out: what each chunk starts from
    writes,  # [B, H, N CHUNK, V], out
    T, chunks, H, G, segments, per_segment,
    DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    PADDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The way of the state once more, this time keeping it."""
    head, block, segment = tl.program_id(0) % H, tl.program_id(0) // H, tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    i, c = tl.arange(0, PADDED), tl.arange(0, CHUNK)
    j = block * COLUMNS + tl.arange(0, COLUMNS)
    columns = (j < V)[None, :]
    both = (i < K)[:, None] & columns
    cells = i[:, None] * V + j[None, :]
    state = tl.load(starts + ((row * H + head) * segments + segment) * K * V + cells, both, 0.0)
    key += row * k_b + head // (H // G) * k_g
    value += row * v_b + head // (H // G) * v_g
    for n in range(segment * per_segment, tl.minimum((segment + 1) * per_segment, chunks)):
        start, chunk = tl.cast(n, tl.int64) * CHUNK, (row * H + head) * chunks + n
        place, inside = chunk * CHUNK, (c < T - n * CHUNK)[:, None]
        k = rows(key, start, k_t, c, i, inside & (i < K)[None, :])
        v = rows(value, start, v_t, c, j, inside & columns)
        kept, to_end, whole = decays(total, place, c, DECAY, CHUNK)
        k_scale, strong = tl.load(key_scale + place + c), tl.load(strength + place + c)
        rounded = state.to(k.dtype)
        tl.store(states + chunk * K * V + cells, rounded, both)
        new = errors(v, k, rounded, strong, kept * k_scale, DELTA)
        if DELTA:
            new = tl.dot(square(solved, chunk, c, CHUNK), new.to(k.dtype), input_precision="ieee")
        tl.store(writes + place * V + (c[:, None] * V + j[None, :]), new.to(k.dtype), columns)
        new = (new * (to_end * k_scale)[:, None]).to(k.dtype)
        state = tl.dot(tl.trans(k), new, state * whole, input_precision="ieee")


@triton.jit(do_not_specialize=RUNTIME)
def back(
    query, key, value, q_b, q_t, q_h, k_b, k_t, k_g, v_b, v_t, v_g,
    query_scale, key_scale, strength, total, scores, solved,
    d_out,  # [B, T, H, V], contiguous
    d_ends,  # [B, H, P, K, V] float32, of the state that a segment ends with; the last is given
    d_states,  # [B, H, N, K, V], out: of the state that a chunk ends with
    d_errors,  # [B, H, N CHUNK, V], out
    d_initial,  # [B, H, K, V] float32, out
    T, chunks, H, G, segments, per_segment,
    KEEP: tl.constexpr,
    DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    PADDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """KEEP: gradients of each chunk, from those of the state that a segment ends with.

    Else what a segment but the first adds to the gradient of the state it starts from; the last
    segment goes from the gradient itself, the others from zeros.
    """
    head, block = tl.program_id(0) % H, tl.program_id(0) // H
    segment = tl.program_id(1) if KEEP else tl.program_id(1) + 1
    row = tl.program_id(2).to(tl.int64)
    i, c = tl.arange(0, PADDED), tl.arange(0, CHUNK)
    j = block * COLUMNS + tl.arange(0, COLUMNS)
    inner, columns = (i < K)[None, :], (j < V)[None, :]
    both = (i < K)[:, None] & columns
    cells = i[:, None] * V + j[None, :]
    end = (row * H + head) * segments + segment
    is_given = KEEP | (segment == segments - 1)
    d_state = tl.load(d_ends + end * K * V + cells, both & is_given, 0.0)
    query += row * q_b + head * q_h
    key += row * k_b + head // (H // G) * k_g
    d_out += (row * T * H + head) * V
    first, last = segment * per_segment, tl.minimum((segment + 1) * per_segment, chunks)
    for count in range(first, last):
        n = first + last - 1 - count
        start, chunk = tl.cast(n, tl.int64) * CHUNK, (row * H + head) * chunks + n
        place, inside = chunk * CHUNK, (c < T - n * CHUNK)[:, None]
        k = rows(key, start, k_t, c, i, inside & inner)
        q = rows(query, start, q_t, c, i, inside & inner)
        d_read = rows(d_out, start, H * V, c, j, inside & columns)
        kept, to_end, whole = decays(total, place, c, DECAY, CHUNK)
        k_scale, strong = tl.load(key_scale + place + c), tl.load(strength + place + c)
        rounded = d_state.to(k.dtype)
        d_new = tl.dot(k, rounded, input_precision="ieee") * (to_end * k_scale)[:, None]
        read = tl.trans(square(scores, chunk, c, CHUNK))
        if DELTA:
            matrix = tl.trans(square(solved, chunk, c, CHUNK))
            d_new = tl.dot(matrix, d_new.to(k.dtype), input_precision="ieee")
        d_error = tl.dot(read, d_read, d_new, input_precision="ieee")
        if KEEP:
            tl.store(d_states + chunk * K * V + cells, rounded, both)
            to = d_errors + place * V + (c[:, None] * V + j[None, :])
            tl.store(to, d_error.to(k.dtype), columns)
        d_read = (d_read * (kept * tl.load(query_scale + place + c))[:, None]).to(k.dtype)
        d_state = tl.dot(tl.trans(q), d_read, d_state * whole, input_precision="ieee")
        if DELTA:
            taken = (d_error * -(strong * kept * k_scale)[:, None]).to(k.dtype)
            d_state = tl.dot(tl.trans(k), taken, d_state, input_precision="ieee")
    if KEEP:
        to = (row * H + head) * K * V + cells
        tl.store(d_initial + to, d_state, both & (segment == 0))
    else:
        tl.store(d_ends + (end - 1) * K * V + cells, d_state, both)
