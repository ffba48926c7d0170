"""Triton kernels of the gradients of queries, keys, values and gates, for all chunks at once.

Notation as in `ahn.ops.chunk_scan.triton.backward`. With w the decay from a chunk's start to a
token, D the decay between two tokens, e that to the chunk's end (k and q are scaled):

    dq = w dout S^T + (D dout u^T) k
    dk = e u dS'^T + (D dout u^T)^T q + Z^T k + (Z k - w b de S^T),  Z = -tril(D b de u^T, -1)
    db = de v + k (Z k - w b de S^T) / b

The first three terms of dk fall as the token's running sum of log decay grows, the last two
rise, and so does what the token reads. So the sum's gradient is q dq - k (the first three) +
k (the last two); in the last token's lies also what comes from the state's own decay.

What a query reads of a write of its own chunk stands in q dq and in k dk. A token's log decay has
only what lies to both sides of it, so the rest must cancel: the pairs are summed both ways as they
are, before they are rounded for the products that make dq and dk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.chunk_scan.triton.common import decay_between, rows


@triton.jit
def _of_raw(d_scaled, x, scale, along, NORMALIZE: tl.constexpr):
    """Gradient of rows x from that of x scaled: only what is across x turns a unit vector."""
    if NORMALIZE:
        long = x.to(tl.float32)
        d_scaled -= long * (along / (tl.sum(long * long, 1) + 1e-6))[:, None]
    return d_scaled * scale[:, None]


@triton.jit(do_not_specialize=["T", "chunks"])
def of_queries(
    query, key, value, q_b, q_t, q_h, k_b, k_t, k_g, v_b, v_t, v_g,
    query_scale, key_scale, strength, total, scores, solved,
    states, writes, d_out,
    d_query,  # [B, T, H, K], out
    d_since,  # [B, H, N CHUNK] float32, out: of the sum of log decay, by what is read
    T, chunks, H, G,
    NORMALIZE: tl.constexpr, DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    head, n, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, c, columns = tl.arange(0, PADDED), tl.arange(0, CHUNK), tl.arange(0, COLUMNS)
    start, chunk = n.to(tl.int64) * CHUNK, (row * H + head) * chunks + n
    place, inside = chunk * CHUNK + c, (c < T - n * CHUNK)[:, None]
    inner = (i < K)[None, :]
    between = tl.zeros((CHUNK, CHUNK), tl.float32)
    d_q = tl.zeros((CHUNK, PADDED), tl.float32)
    for first in range(0, V, COLUMNS):
        j = first + columns
        d_read = rows(
            d_out + (row * T * H + head) * V, start, H * V, c, j, inside & (j < V)[None, :]
        )
        new = rows(writes, chunk * CHUNK, V, c, j, (j < V)[None, :])
        state = rows(states, chunk * K, V, i, j, (i < K)[:, None] & (j < V)[None, :])
        between = tl.dot(d_read, tl.trans(new), between, input_precision="ieee")
        d_q = tl.dot(d_read, tl.trans(state), d_q, input_precision="ieee")
    since = tl.zeros((CHUNK,), tl.float32)
    if DECAY:
        since = tl.load(total + place)
    k = rows(key + row * k_b + head // (H // G) * k_g, start, k_t, c, i, inside & inner)
    q = rows(query + row * q_b + head * q_h, start, q_t, c, i, inside & inner)
    q_scale = tl.load(query_scale + place)
    between *= decay_between(since, c, DECAY, CHUNK) * tl.load(key_scale + place)[None, :]
    d_q *= tl.exp2(since)[:, None]
    if DECAY:  # both parts of the pairs; `of_keys` leaves them out
        pairs = tl.dot(q, tl.trans(k), input_precision="ieee") * between * q_scale[:, None]
        sums = tl.sum(pairs, 1) - tl.sum(pairs, 0)
        tl.store(d_since + place, tl.sum(d_q * q.to(tl.float32), 1) * q_scale + sums)
    d_q = tl.dot(between.to(k.dtype), k, d_q, input_precision="ieee")
    along = tl.sum(d_q * q.to(tl.float32), 1)
    d_q = _of_raw(d_q, q, q_scale, along, NORMALIZE).to(d_query.dtype.element_ty)
    to = d_query + ((row * T + start) * H + head) * K + (c[:, None] * H * K + i[None, :])
    tl.store(to, d_q, inside & inner)


@triton.jit(do_not_specialize=["T", "chunks"])
def of_keys(
    query, key, value, q_b, q_t, q_h, k_b, k_t, k_g, v_b, v_t, v_g,
    query_scale, key_scale, strength, total, scores, solved,
    states, writes, d_out, d_states, d_errors, d_since,
    d_key, d_value,  # [B, T, H, K or V], out
    d_strength, d_log_decay,  # [B, T, H] float32, out
    T, chunks, H, G,
    NORMALIZE: tl.constexpr, DELTA: tl.constexpr, DECAY: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of keys, values, strength and log decay; of every query head."""
    head, n, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, c, columns = tl.arange(0, PADDED), tl.arange(0, CHUNK), tl.arange(0, COLUMNS)
    start, chunk = n.to(tl.int64) * CHUNK, (row * H + head) * chunks + n
    place, inside = chunk * CHUNK + c, (c < T - n * CHUNK)[:, None]
    inner = (i < K)[None, :]
    strong, k_scale = tl.load(strength + place), tl.load(key_scale + place)
    read = tl.zeros((CHUNK, CHUNK), tl.float32)  # rows write, columns read
    known = tl.zeros((CHUNK, CHUNK), tl.float32)  # rows read, columns write
    falls = tl.zeros((CHUNK, PADDED), tl.float32)
    rises = tl.zeros((CHUNK, PADDED), tl.float32)
    d_strong = tl.zeros((CHUNK,), tl.float32)
    d_whole = 0.0
    for first in range(0, V, COLUMNS):
        j = first + columns
        both = inside & (j < V)[None, :]
        v = rows(value + row * v_b + head // (H // G) * v_g, start, v_t, c, j, both)
        d_read = rows(d_out + (row * T * H + head) * V, start, H * V, c, j, both)
        new = rows(writes, chunk * CHUNK, V, c, j, (j < V)[None, :])
        d_error = rows(d_errors, chunk * CHUNK, V, c, j, (j < V)[None, :])
        cells = (i < K)[:, None] & (j < V)[None, :]
        state = rows(states, chunk * K, V, i, j, cells)
        d_state = rows(d_states, chunk * K, V, i, j, cells)
        read = tl.dot(new, tl.trans(d_read), read, input_precision="ieee")
        falls = tl.dot(new, tl.trans(d_state), falls, input_precision="ieee")
        if DELTA:
            known = tl.dot(d_error, tl.trans(new), known, input_precision="ieee")
            rises = tl.dot(d_error, tl.trans(state), rises, input_precision="ieee")
        d_new = d_error.to(tl.float32)
        d_strong += tl.sum(d_new * v.to(tl.float32), 1)
        d_whole += tl.sum(state.to(tl.float32) * d_state.to(tl.float32))
        d_v = (d_new * strong[:, None]).to(d_value.dtype.element_ty)
        to = d_value + ((row * T + start) * H + head) * V + (c[:, None] * H * V + j[None, :])
        tl.store(to, d_v, both)
    since, whole = tl.zeros((CHUNK,), tl.float32), 0.0
    if DECAY:
        since = tl.load(total + place)
        whole = tl.load(total + chunk * CHUNK + CHUNK - 1)
    k = rows(key + row * k_b + head // (H // G) * k_g, start, k_t, c, i, inside & inner)
    q = rows(query + row * q_b + head * q_h, start, q_t, c, i, inside & inner)
    long = k.to(tl.float32)
    falls *= tl.exp2(whole - since)[:, None]
    falling = tl.sum(falls * long, 1) * k_scale
    d_whole = d_whole * tl.exp2(whole) + tl.sum(falling)
    decay = decay_between(since, c, DECAY, CHUNK)
    rising = tl.zeros((CHUNK,), tl.float32)
    if DELTA:
        known *= tl.where(c[:, None] == c[None, :], 0.0, -decay)
        back = tl.trans((known * (strong * k_scale)[:, None]).to(k.dtype))
        falls = tl.dot(back, k, falls, input_precision="ieee")
        falling = tl.sum(falls * long, 1) * k_scale
        rises *= -tl.exp2(since)[:, None]
        known = (known * k_scale[None, :]).to(k.dtype)
        rises = tl.dot(known, k, rises, input_precision="ieee")
        rising = tl.sum(rises * long, 1) * k_scale
        d_strong += rising
    at = (row * T + start + c) * H + head
    tl.store(d_strength + at, d_strong, c < T - n * CHUNK)
    if DECAY:
        d_sum = tl.load(d_since + place) + strong * rising - falling
        tl.store(d_log_decay + at, tl.cumsum(d_sum, 0, reverse=True) + d_whole, c < T - n * CHUNK)
    read *= tl.trans(decay) * tl.load(query_scale + place)[None, :]
    falls = tl.dot(read.to(q.dtype), q, falls, input_precision="ieee")
    d_k = falls + rises * strong[:, None]
    d_k = _of_raw(d_k, k, k_scale, tl.sum(d_k * long, 1), NORMALIZE).to(d_key.dtype.element_ty)
    to = d_key + ((row * T + start) * H + head) * K + (c[:, None] * H * K + i[None, :])
    tl.store(to, d_k, inside & inner)
