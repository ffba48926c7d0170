"""Triton kernels of one decoding step; see `ahn.ops.decoding` for the contract.

Two launches a layer: the state's update and read beside attention over pieces of the slots (both
need the evicted token, so they come first), and the merge, which puts the new token in its place.
Shapes: B rows, H query heads, G key-value heads, N slots, K = V head size, n gates.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.gemv.triton import silu
from ahn.ops.overlap import let_next_start, wait_for_previous

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(x):
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def _unit(x):
    """x / sqrt(sum x^2 + 1e-6)."""
    return x * tl.rsqrt(tl.sum(x * x, 0) + 1e-6)


@triton.jit
def _norm_factor(x, i, mask, eps, DIM: tl.constexpr, NORMED: tl.constexpr):
    """1 / sqrt(mean x^2 + eps) over the last axis, of heads at x; not of plain ones."""
    factor = 1.0
    if NORMED:
        number = tl.load(x + i, mask, 0.0).to(tl.float32)
        axis: tl.constexpr = len(number.shape) - 1
        factor = tl.rsqrt(tl.sum(number * number, axis, keep_dims=True) / DIM + eps)
    return factor


@triton.jit
def _head(
    x, i, mask, factor, norm, cos, sin,
    DIM: tl.constexpr, NORMED: tl.constexpr, ROTATED: tl.constexpr,
):  # fmt: skip
    """Numbers i of heads at x, normed and rotated where that is still to be done; x's dtype."""
    number = tl.load(x + i, mask, 0.0).to(tl.float32)
    if NORMED:
        number *= factor * tl.load(norm + i, i < DIM, 0.0).to(tl.float32)
    if ROTATED:
        HALF: tl.constexpr = DIM // 2
        other = tl.where(i < HALF, i + HALF, i - HALF)
        partner = tl.load(x + other, mask, 0.0).to(tl.float32)
        if NORMED:
            partner *= factor * tl.load(norm + other, i < DIM, 0.0).to(tl.float32)
        angle = tl.where(i < HALF, i, other)
        number *= tl.load(cos + angle, i < DIM, 0.0).to(tl.float32)
        partner *= tl.load(sin + angle, i < DIM, 0.0).to(tl.float32)
        number += tl.where(i < HALF, -partner, partner)
    return number.to(x.dtype.element_ty)


@triton.jit
def _update_state(
    program, query, keys, values, gates, state, slot, keep, rate, dt_bias, cos, sin, query_norm,
    read, query_stride_b, query_stride_h, slot_stride, H, G, N,
    query_scale: tl.constexpr, norm_eps: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    COLUMNS: tl.constexpr, NUM_GATES: tl.constexpr, RULE: tl.constexpr, NORMED: tl.constexpr,
    ROTATED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Write the evicted token into COLUMNS of a head's state, then read it with the new query."""
    parts: tl.constexpr = PADDED // COLUMNS
    row, head = (program // parts) // H, (program // parts) % H
    place = tl.load(slot + row * slot_stride).to(tl.int64)
    kept = tl.load(keep + row * slot_stride).to(tl.float32)
    i = tl.arange(0, PADDED)
    j = (program % parts) * COLUMNS + tl.arange(0, COLUMNS)
    rows, columns = i < DIM, j < DIM
    token = ((row * G + head // (H // G)) * N + place) * DIM
    k = tl.load(keys + token + i, rows, 0.0).to(tl.float32)
    v = tl.load(values + token + j, columns, 0.0).to(tl.float32)
    k = _unit(k)
    gate = gates + ((row * H + head).to(tl.int64) * N + place) * NUM_GATES
    first = tl.load(gate).to(tl.float32)
    second, bias, speed = first, 0.0, 0.0
    if RULE == "gated_delta":
        second = tl.load(gate + 1).to(tl.float32)
    if RULE != "delta":
        bias = tl.load(dt_bias + head).to(tl.float32)
        speed = tl.exp(tl.load(rate + head).to(tl.float32))
    cells = state + ((row * H + head) * DIM + i[:, None]) * DIM + j[None, :]
    both = rows[:, None] & columns[None, :]
    s = tl.load(cells, both, 0.0)
    wait_for_previous(OVERLAP)
    query += row * query_stride_b + head * query_stride_h
    factor = _norm_factor(query, i, rows, norm_eps, DIM, NORMED)
    q = _head(query, i, rows, factor, query_norm, cos, sin, DIM, NORMED, ROTATED)
    q = _unit(q.to(tl.float32)) * query_scale
    if RULE == "ssd":
        step = kept * _softplus(first + bias)
        s = s * tl.exp(-speed * step)
        s += (k * step)[:, None] * v[None, :]
    else:
        if RULE == "gated_delta":
            s = s * tl.exp(-speed * _softplus(second + bias) * kept)
        error = v - tl.sum(k[:, None] * s, 0)
        s += k[:, None] * (error * kept * tl.sigmoid(first))[None, :]
    tl.store(cells, s, both)
    tl.store(read + (row * H + head) * DIM + j, tl.sum(q[:, None] * s, 0), columns)


@triton.jit
def _attend_piece(
    program, query, keys, values, slot, filled, cos, sin, query_norm, largest, total, weighted,
    query_stride_b, query_stride_h, slot_stride, H, G, N, pieces, per_piece,
    scale: tl.constexpr, norm_eps: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, NORMED: tl.constexpr,
    ROTATED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Softmax of a group's queries over one piece of the slots, to be merged."""
    piece, row, group = program % pieces, (program // pieces) // G, (program // pieces) % G
    shared = H // G
    place = tl.load(slot + row * slot_stride)
    first = piece * per_piece
    last = tl.minimum(first + per_piece, tl.load(filled + row * slot_stride)).to(tl.int32)
    h, i = tl.arange(0, HEADS), tl.arange(0, PADDED)
    heads = group * shared + h
    some = (h < shared)[:, None] & (i < DIM)[None, :]
    start = (row * G + group).to(tl.int64) * N * DIM
    wait_for_previous(OVERLAP)
    query += row * query_stride_b + heads[:, None] * query_stride_h
    factor = _norm_factor(query, i[None, :], some, norm_eps, DIM, NORMED)
    q = _head(query, i[None, :], some, factor, query_norm, cos, sin, DIM, NORMED, ROTATED)
    top = tl.full((HEADS,), float("-inf"), tl.float32)
    sums = tl.zeros((HEADS,), tl.float32)
    out = tl.zeros((HEADS, PADDED), tl.float32)
    for block in range(first, last, BLOCK):
        n = block + tl.arange(0, BLOCK)
        inside = (n < last)[:, None] & (i < DIM)[None, :]
        offset = start + n[:, None] * DIM + i[None, :]
        k = tl.load(keys + offset, inside, 0.0)
        v = tl.load(values + offset, inside, 0.0)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
        score = tl.where(((n < last) & (n != place))[None, :], score, float("-inf"))
        new = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # a block of nothing but the old token
        weight = tl.exp2(score - base[:, None])
        shrink = tl.exp2(top - base)
        sums = sums * shrink + tl.sum(weight, 1)
        out = out * shrink[:, None]
        out += tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
        top = new
    index = (row * H + heads) * pieces + piece
    tl.store(largest + index, top, h < shared)
    tl.store(total + index, sums, h < shared)
    tl.store(weighted + index[:, None] * DIM + i[None, :], out, some)


@triton.jit
def update_and_attend(
    query,  # [B, H, K]
    memory_query,  # [B, H, K], with which the memory is read
    keys,  # [B, G, N, K]
    values,
    gates,  # [B, H, N, n]
    state,  # [B, H, K, V] float32, in place
    slot,  # [B or 1]; what is there is on its way out
    filled,  # [B or 1]
    keep,  # [B or 1] bool
    rate,  # [H], logarithm of minus the decay's rate (A_log); unused by the plain delta rule
    dt_bias,  # [H]
    cos,  # [B or 1, K / 2], where queries are still to be ROTATED
    sin,
    query_norm,  # [K], where they are still to be NORMED
    read,  # [B, H, V] float32, out
    largest,  # [B, H, pieces] float32, out: largest score, base 2
    total,  # [B, H, pieces] float32, out: sum of the weights
    weighted,  # [B, H, pieces, V] float32, out: sum of the weighted values
    query_stride_b,
    query_stride_h,
    memory_query_stride_b,
    memory_query_stride_h,
    slot_stride,
    angle_stride,
    H,
    G,
    N,
    pieces,
    per_piece,
    updates,  # programs of the state's update; the others attend
    scale: tl.constexpr,  # floats are constants: torch.compile would pass them in double precision
    query_scale: tl.constexpr,
    norm_eps: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,  # DIM, or the next power of two
    COLUMNS: tl.constexpr,  # of the state, a program
    UPDATES_FIRST: tl.constexpr,  # or last
    NUM_GATES: tl.constexpr,  # 0 without a memory
    RULE: tl.constexpr,  # "delta", "gated_delta" or "ssd"
    HEADS: tl.constexpr,  # of a group, padded to what a matrix product takes
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    NORMED: tl.constexpr,
    ROTATED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The state's update and read, and attention over all that is exact."""
    program = tl.program_id(0)
    let_next_start(OVERLAP)
    attends = tl.num_programs(0) - updates
    first_update = 0 if UPDATES_FIRST else attends
    updating = program < updates if UPDATES_FIRST else program >= attends
    if updating:
        if NUM_GATES > 0:
            program -= first_update
            turn = (program // (PADDED // COLUMNS)) // H * angle_stride
            _update_state(
                program, memory_query, keys, values, gates, state, slot, keep, rate, dt_bias,
                cos + turn, sin + turn, query_norm, read, memory_query_stride_b,
                memory_query_stride_h, slot_stride, H, G, N, query_scale, norm_eps, DIM, PADDED,
                COLUMNS, NUM_GATES, RULE, NORMED, ROTATED, OVERLAP,
            )  # fmt: skip
    else:
        program -= updates if UPDATES_FIRST else 0
        turn = (program // pieces) // G * angle_stride
        _attend_piece(
            program, query, keys, values, slot, filled, cos + turn, sin + turn, query_norm,
            largest, total, weighted, query_stride_b, query_stride_h, slot_stride, H, G, N, pieces,
            per_piece, scale, norm_eps, DIM, PADDED, HEADS, BLOCK, PRECISION, NORMED, ROTATED,
            OVERLAP,
        )  # fmt: skip


@triton.jit
def _ask_read(
    read, output_gate, row, head, H,
    DIM: tl.constexpr, PADDED: tl.constexpr, ALL_HEADS: tl.constexpr, GATE_FIRST: tl.constexpr,
):  # fmt: skip
    """What the state gave [V] and its raw gate; and where the gate comes first, those of all heads
    [H, V] and [H], as one norm is over all."""
    i, h = tl.arange(0, PADDED), tl.arange(0, ALL_HEADS)
    read += row * H * DIM
    r = tl.load(read + head * DIM + i, i < DIM, 0.0)
    gate = tl.load(output_gate + head)
    if GATE_FIRST:
        some = (h < H)[:, None] & (i < DIM)[None, :]
        every = tl.load(read + h[:, None] * DIM + i[None, :], some, 0.0)
        every_gate = tl.load(output_gate + h, h < H, 0.0)
    else:
        every, every_gate = r, gate
    return r, gate, every, every_gate


@triton.jit
def _projected_read(asked, weight, matrix, H, eps, DIM: tl.constexpr, GATE_FIRST: tl.constexpr):
    """What the state gave (`_ask_read`), normalised by `weight` [V], gated, mapped by `matrix`."""
    r, gate, every, every_gate = asked
    gate = silu(gate.to(tl.float32))
    if GATE_FIRST:
        every *= silu(every_gate.to(tl.float32))[:, None]
        size = tl.sum(tl.sum(every * every, 1), 0) / (H * DIM)
        r = r * gate * tl.rsqrt(size + eps) * weight
    else:
        r = r * tl.rsqrt(tl.sum(r * r, 0) / DIM + eps) * weight * gate
    r = r.to(matrix.dtype).to(tl.float32)
    return tl.sum(r[:, None] * matrix.to(tl.float32), 0)


@triton.jit
def merge_pieces(
    query,  # [B, H, K]
    key,  # [B, G, K], the new token's
    value,
    new_gates,  # [B, H, n]
    keys,  # [B, G, N, K], written in one slot
    values,
    gates,  # [B, H, N, n], likewise
    slot,
    cos,  # [B or 1, K / 2]; this and the norms as in `update_and_attend`
    sin,
    query_norm,
    key_norm,
    largest,
    total,
    weighted,
    read,  # [B, H, V] float32; of the following, nothing is looked at without a memory
    output_gate,  # [B, H]
    norm,  # [V], or [H V] where the gate comes first
    o_proj,  # [H, V, V]
    out,  # [B, H, V]
    query_stride_b,
    query_stride_h,
    key_stride_b,
    key_stride_h,
    value_stride_b,
    value_stride_h,
    gate_stride_b,
    gate_stride_h,
    gate_stride_n,
    output_gate_stride,
    slot_stride,
    angle_stride,
    H,
    G,
    N,
    pieces,
    scale: tl.constexpr,
    eps: tl.constexpr,
    norm_eps: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECES: tl.constexpr,  # the next power of two
    ALL_HEADS: tl.constexpr,
    NUM_GATES: tl.constexpr,  # one or two
    HAS_MEMORY: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    NORMED: tl.constexpr,
    ROTATED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Join the pieces, the new token and the memory's read; store the new token in its slot."""
    row, head = tl.program_id(0) // H, tl.program_id(0) % H
    group = head // (H // G)
    i, p = tl.arange(0, PADDED), tl.arange(0, PIECES)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    query += row * query_stride_b + head * query_stride_h
    key += row * key_stride_b + group * key_stride_h
    cos, sin = cos + row * angle_stride, sin + row * angle_stride
    let_next_start(OVERLAP)
    place = tl.load(slot + row * slot_stride).to(tl.int64)
    if HAS_MEMORY:
        first = head * DIM if GATE_FIRST else 0
        weight = tl.load(norm + first + i, i < DIM, 0.0).to(tl.float32)
        both = (i < DIM)[:, None] & (j < DIM)[None, :]
        matrix = tl.load(o_proj + (head * DIM + i[:, None]) * DIM + j[None, :], both, 0.0)
    wait_for_previous(OVERLAP)
    # All that is read is asked for before anything is summed: sums are where programs wait.
    index = (row * H + head) * pieces + p
    tops = tl.load(largest + index, p < pieces, float("-inf"))
    totals = tl.load(total + index, p < pieces, 0.0)
    some = (p < pieces)[:, None] & (j < DIM)[None, :]
    parts = tl.load(weighted + index[:, None] * DIM + j[None, :], some, 0.0)
    v = tl.load(value + row * value_stride_b + group * value_stride_h + j, j < DIM, 0.0)
    if HAS_MEMORY:
        asked = _ask_read(
            read, output_gate + row * output_gate_stride, row, head, H, DIM, PADDED, ALL_HEADS,
            GATE_FIRST,
        )  # fmt: skip
        n = tl.arange(0, NUM_GATES)
        new = new_gates + row * gate_stride_b + head * gate_stride_h
        gate = tl.load(new + n * gate_stride_n)
    factor = _norm_factor(query, i, i < DIM, norm_eps, DIM, NORMED)
    q = _head(query, i, i < DIM, factor, query_norm, cos, sin, DIM, NORMED, ROTATED)
    factor = _norm_factor(key, i, i < DIM, norm_eps, DIM, NORMED)
    k = _head(key, i, i < DIM, factor, key_norm, cos, sin, DIM, NORMED, ROTATED)
    own = tl.sum(q.to(tl.float32) * k.to(tl.float32), 0) * (scale * LOG2E)
    top = tl.maximum(tl.max(tops, 0), own)
    shrink = tl.exp2(tops - top)
    own = tl.exp2(own - top)
    sums = tl.sum(totals * shrink, 0) + own
    result = (tl.sum(parts * shrink[:, None], 0) + own * v.to(tl.float32)) / sums
    if HAS_MEMORY:
        result = result.to(out.dtype.element_ty).to(tl.float32)
        result += _projected_read(asked, weight, matrix, H, eps, DIM, GATE_FIRST)
    tl.store(out + (row * H + head) * DIM + j, result.to(out.dtype.element_ty), j < DIM)
    if head % (H // G) == 0:
        token = ((row * G + group) * N + place) * DIM
        part = _head(key, j, j < DIM, factor, key_norm, cos, sin, DIM, NORMED, ROTATED)
        tl.store(keys + token + j, part, j < DIM)
        tl.store(values + token + j, v, j < DIM)
    if HAS_MEMORY and tl.program_id(1) == 0:
        old = gates + ((row * H + head).to(tl.int64) * N + place) * NUM_GATES
        tl.store(old + n, gate)
