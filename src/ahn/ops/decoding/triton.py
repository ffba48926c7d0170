"""Triton kernels of one decoding step; see `ahn.ops.decoding` for the contract.

There are two launches a layer. The first updates and reads the state, and attends to the tokens of
the ring, which is split as in flash-decoding; both parts still need the evicted token. The second
merges the splits, adds the new token's attention and the readout, and stores the new token.
Shapes: B rows, H query heads, G key-value heads, N places of the ring (sinks included), K = V head
size, n write gates.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ahn.ops.decoding.attend_triton import attend_ring, attend_slots
from ahn.ops.decoding.transform_triton import LOG2E, norm_rope, rms_factor
from ahn.ops.dependent_launch import launch_dependents, wait_for_prerequisites
from ahn.ops.gemv.triton import silu


@triton.jit
def _softplus(x):
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def _l2_normalize(x):
    """x / sqrt(sum x^2 + 1e-6)."""
    return x * tl.rsqrt(tl.sum(x * x, 0) + 1e-6)


@triton.jit
def _update_state(
    program, query, keys, values, gates, state, ring_index, write_mask, A_log, dt_bias, cos, sin,
    query_norm, readout, query_stride_b, query_stride_h, row_stride, H, G, N,
    query_scale: tl.constexpr, norm_eps: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    COLUMNS: tl.constexpr, NUM_GATES: tl.constexpr, RULE: tl.constexpr, QK_NORM: tl.constexpr,
    ROPE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write the evicted token into COLUMNS of a head's state, then read it with the new query."""
    blocks: tl.constexpr = PADDED // COLUMNS
    row, head = (program // blocks) // H, (program // blocks) % H
    index = tl.load(ring_index + row * row_stride).to(tl.int64)
    mask = tl.load(write_mask + row * row_stride).to(tl.float32)
    i = tl.arange(0, PADDED)
    j = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    rows, columns = i < DIM, j < DIM
    token = ((row * G + head // (H // G)) * N + index) * DIM
    k = tl.load(keys + token + i, rows, 0.0).to(tl.float32)
    v = tl.load(values + token + j, columns, 0.0).to(tl.float32)
    k = _l2_normalize(k)
    p_gate = gates + ((row * H + head).to(tl.int64) * N + index) * NUM_GATES
    gate = tl.load(p_gate).to(tl.float32)
    decay_gate, bias, A = gate, 0.0, 0.0
    if RULE == "gated_delta":
        decay_gate = tl.load(p_gate + 1).to(tl.float32)
    if RULE != "delta":
        bias = tl.load(dt_bias + head).to(tl.float32)
        A = tl.exp(tl.load(A_log + head).to(tl.float32))
    p_state = state + ((row * H + head) * DIM + i[:, None]) * DIM + j[None, :]
    state_mask = rows[:, None] & columns[None, :]
    b_state = tl.load(p_state, state_mask, 0.0)
    wait_for_prerequisites(PDL)
    query += row * query_stride_b + head * query_stride_h
    norm_factor = rms_factor(query, i, rows, norm_eps, DIM, QK_NORM)
    q = norm_rope(query, i, rows, norm_factor, query_norm, cos, sin, DIM, QK_NORM, ROPE)
    q = _l2_normalize(q.to(tl.float32)) * query_scale
    if RULE == "ssd":
        dt = mask * _softplus(gate + bias)
        b_state = b_state * tl.exp(-A * dt)
        b_state += (k * dt)[:, None] * v[None, :]
    else:
        if RULE == "gated_delta":
            b_state = b_state * tl.exp(-A * _softplus(decay_gate + bias) * mask)
        error = v - tl.sum(k[:, None] * b_state, 0)
        b_state += k[:, None] * (error * mask * tl.sigmoid(gate))[None, :]
    tl.store(p_state, b_state, state_mask)
    tl.store(readout + (row * H + head) * DIM + j, tl.sum(q[:, None] * b_state, 0), columns)


@triton.jit
def _attend_split(
    program, query, keys, values, slots, ring_index, filled, cos, sin, query_norm, split_max,
    split_sum, split_acc, query_stride_b, query_stride_h, row_stride, H, G, N, num_splits,
    ring_splits, split_size, slot_total,
    scale: tl.constexpr, norm_eps: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, QK_NORM: tl.constexpr,
    ROPE: tl.constexpr, SLOT_BITS: tl.constexpr, SHARED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Attention of a group's queries over one split: of the ring, or behind these of its slots."""
    split = program % num_splits
    row, group = (program // num_splits) // G, (program // num_splits) % G
    group_size = H // G
    h, i = tl.arange(0, HEADS), tl.arange(0, PADDED)
    heads = group * group_size + h
    mask = (h < group_size)[:, None] & (i < DIM)[None, :]
    index = tl.load(ring_index + row * row_stride)
    length = tl.load(filled + row * row_stride)
    wait_for_prerequisites(PDL)
    query += row * query_stride_b + heads[:, None] * query_stride_h
    norm_factor = rms_factor(query, i[None, :], mask, norm_eps, DIM, QK_NORM)
    q = norm_rope(query, i[None, :], mask, norm_factor, query_norm, cos, sin, DIM, QK_NORM, ROPE)
    offset = (row * G + group).to(tl.int64) * N * DIM
    first = split * split_size  # beyond what is filled in a split of the slots
    last = tl.minimum(first + split_size, length).to(tl.int32)
    m_i, l_i, acc = attend_ring(
        q, keys + offset, values + offset, first, last, index, scale, DIM, PADDED, HEADS, BLOCK,
        PRECISION,
    )  # fmt: skip
    if SLOT_BITS > 0:
        begin, end = tl.load(slots[0] + group), tl.load(slots[0] + group + 1)
        first = (split - ring_splits) * split_size
        last = tl.where(first < 0, first, tl.minimum(first + split_size, end - begin))
        begin += row.to(tl.int64) * slot_total
        m_i, l_i, acc = attend_slots(
            m_i, l_i, acc, q, slots, begin, first, last, scale, DIM, PADDED, BLOCK, PRECISION,
            SLOT_BITS, SHARED,
        )  # fmt: skip
    o_split = (row * H + heads) * num_splits + split
    tl.store(split_max + o_split, m_i, h < group_size)
    tl.store(split_sum + o_split, l_i, h < group_size)
    tl.store(split_acc + o_split[:, None] * DIM + i[None, :], acc, mask)


@triton.jit
def update_and_attend(
    query,  # [B, H, K]
    memory_query,  # [B, H, K], the query that reads the state
    keys, values,  # [B, G, N, K]
    slots,  # with SLOT_BITS: first ones of heads, places, keys, values, scales; see `SlotBuffers`
    gates,  # [B, H, N, n]
    state,  # [B, H, K, V] float32, in place
    ring_index,  # [B or 1], where the evicted token is and the new one will be
    filled,  # [B or 1], leading places of the ring that hold a token
    write_mask,  # [B or 1] bool, whether the evicted token is written
    A_log,  # [H], log of the decay rate; not read by the plain delta rule
    dt_bias,  # [H]
    cos, sin,  # [B or 1, K / 2], read with ROPE
    query_norm,  # [K], read with QK_NORM
    readout,  # [B, H, V] float32, out
    split_max,  # [B, H, num_splits] float32, out: largest score, base 2
    split_sum,  # [B, H, num_splits] float32, out: sum of the weights
    split_acc,  # [B, H, num_splits, V] float32, out: sum of the weighted values
    query_stride_b, query_stride_h, memory_query_stride_b, memory_query_stride_h, row_stride,
    angle_stride, H, G, N, num_splits,
    ring_splits,  # splits of the ring; behind them are those of the slots
    split_size,
    slot_total,  # slots of all heads of a row
    state_programs,  # programs that update the state; the others attend
    # Floats are constants, since torch.compile would pass them as float64.
    scale: tl.constexpr, query_scale: tl.constexpr, norm_eps: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,  # DIM, or the next power of two
    COLUMNS: tl.constexpr,  # columns of the state that a program updates
    STATE_FIRST: tl.constexpr,  # whether programs that update the state come first, or last
    NUM_GATES: tl.constexpr,  # 0 without a memory
    RULE: tl.constexpr,  # "delta", "gated_delta" or "ssd"
    HEADS: tl.constexpr,  # query heads of a group, padded to what a matrix product takes
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, QK_NORM: tl.constexpr, ROPE: tl.constexpr,
    SLOT_BITS: tl.constexpr,  # 0 without slots
    SHARED: tl.constexpr,  # numbers of a slot that have one scale
    PDL: tl.constexpr,
):  # fmt: skip
    """Update and read the state, and attend to the exact tokens; each program does one of both."""
    program = tl.program_id(0)
    launch_dependents(PDL)
    attention_programs = tl.num_programs(0) - state_programs
    first_program = 0 if STATE_FIRST else attention_programs
    updates_state = program < state_programs if STATE_FIRST else program >= attention_programs
    if updates_state:
        if NUM_GATES > 0:
            program -= first_program
            angle_offset = (program // (PADDED // COLUMNS)) // H * angle_stride
            _update_state(
                program, memory_query, keys, values, gates, state, ring_index, write_mask, A_log,
                dt_bias, cos + angle_offset, sin + angle_offset, query_norm, readout,
                memory_query_stride_b, memory_query_stride_h, row_stride, H, G, N, query_scale,
                norm_eps, DIM, PADDED, COLUMNS, NUM_GATES, RULE, QK_NORM, ROPE, PDL,
            )  # fmt: skip
    else:
        program -= state_programs if STATE_FIRST else 0
        angle_offset = (program // num_splits) // G * angle_stride
        _attend_split(
            program, query, keys, values, slots, ring_index, filled, cos + angle_offset,
            sin + angle_offset, query_norm, split_max, split_sum, split_acc, query_stride_b,
            query_stride_h, row_stride, H, G, N, num_splits, ring_splits, split_size, slot_total,
            scale, norm_eps, DIM, PADDED, HEADS, BLOCK, PRECISION, QK_NORM, ROPE, SLOT_BITS, SHARED,
            PDL,
        )  # fmt: skip


@triton.jit
def _load_readout(
    readout, output_gate, row, head, H,
    DIM: tl.constexpr, PADDED: tl.constexpr, ALL_HEADS: tl.constexpr, GATE_FIRST: tl.constexpr,
):  # fmt: skip
    """The head's readout [V] and its raw gate, and with GATE_FIRST those of all heads [H, V], [H].

    A gate that comes first is followed by one norm over all heads.
    """
    i, h = tl.arange(0, PADDED), tl.arange(0, ALL_HEADS)
    readout += row * H * DIM
    b_read = tl.load(readout + head * DIM + i, i < DIM, 0.0)
    gate = tl.load(output_gate + head)
    if GATE_FIRST:
        mask = (h < H)[:, None] & (i < DIM)[None, :]
        b_all = tl.load(readout + h[:, None] * DIM + i[None, :], mask, 0.0)
        all_gates = tl.load(output_gate + h, h < H, 0.0)
    else:
        b_all, all_gates = b_read, gate
    return b_read, gate, b_all, all_gates


@triton.jit
def _gate_norm_project(
    loaded, norm_weight, b_o_proj, H, eps, DIM: tl.constexpr, GATE_FIRST: tl.constexpr
):
    """What `_load_readout` gave after norm, gate and the head's output projection."""
    b_read, gate, b_all, all_gates = loaded
    gate = silu(gate.to(tl.float32))
    if GATE_FIRST:
        b_all *= silu(all_gates.to(tl.float32))[:, None]
        mean_square = tl.sum(tl.sum(b_all * b_all, 1), 0) / (H * DIM)
        b_read = b_read * gate * tl.rsqrt(mean_square + eps) * norm_weight
    else:
        b_read = b_read * tl.rsqrt(tl.sum(b_read * b_read, 0) / DIM + eps) * norm_weight * gate
    b_read = b_read.to(b_o_proj.dtype).to(tl.float32)
    return tl.sum(b_read[:, None] * b_o_proj.to(tl.float32), 0)


@triton.jit
def merge_splits(
    query, key, value,  # [B, H, K], [B, G, K], [B, G, K], of the new token
    new_gates,  # [B, H, n]
    keys, values,  # [B, G, N, K], written at ring_index
    gates,  # [B, H, N, n], written at ring_index
    new_scores,  # [B, G], with HAS_SCORES
    scores,  # [B, G, N] float32, with HAS_SCORES written at ring_index
    ring_index, cos, sin, query_norm, key_norm, split_max, split_sum, split_acc,
    readout,  # [B, H, V] float32; this and what follows are read with HAS_MEMORY
    output_gate,  # [B, H]
    norm,  # [V], or [H V] where the gate comes first
    o_proj,  # [H, V, V]
    out,  # [B, H, V]
    query_stride_b, query_stride_h, key_stride_b, key_stride_h, value_stride_b, value_stride_h,
    gate_stride_b, gate_stride_h, gate_stride_n, output_gate_stride, row_stride, angle_stride,
    H, G, N, num_splits,
    scale: tl.constexpr, eps: tl.constexpr, norm_eps: tl.constexpr, DIM: tl.constexpr,
    PADDED: tl.constexpr, COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,  # num_splits, or the next power of two
    ALL_HEADS: tl.constexpr,
    NUM_GATES: tl.constexpr,  # one or two
    HAS_MEMORY: tl.constexpr, HAS_SCORES: tl.constexpr, GATE_FIRST: tl.constexpr,
    QK_NORM: tl.constexpr, ROPE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Merge the splits and the new token, add the projected readout, and store the new token."""
    row, head = tl.program_id(0) // H, tl.program_id(0) % H
    group = head // (H // G)
    i, p = tl.arange(0, PADDED), tl.arange(0, SPLITS)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    query += row * query_stride_b + head * query_stride_h
    key += row * key_stride_b + group * key_stride_h
    cos, sin = cos + row * angle_stride, sin + row * angle_stride
    launch_dependents(PDL)
    index = tl.load(ring_index + row * row_stride).to(tl.int64)
    if HAS_MEMORY:
        norm_offset = head * DIM if GATE_FIRST else 0
        norm_weight = tl.load(norm + norm_offset + i, i < DIM, 0.0).to(tl.float32)
        mask = (i < DIM)[:, None] & (j < DIM)[None, :]
        b_o_proj = tl.load(o_proj + (head * DIM + i[:, None]) * DIM + j[None, :], mask, 0.0)
    wait_for_prerequisites(PDL)
    # All loads come before the first reduction, since the warps of a program wait there.
    o_split = (row * H + head) * num_splits + p
    m_splits = tl.load(split_max + o_split, p < num_splits, float("-inf"))
    l_splits = tl.load(split_sum + o_split, p < num_splits, 0.0)
    split_mask = (p < num_splits)[:, None] & (j < DIM)[None, :]
    acc_splits = tl.load(split_acc + o_split[:, None] * DIM + j[None, :], split_mask, 0.0)
    v = tl.load(value + row * value_stride_b + group * value_stride_h + j, j < DIM, 0.0)
    if HAS_MEMORY:
        loaded = _load_readout(
            readout, output_gate + row * output_gate_stride, row, head, H, DIM, PADDED, ALL_HEADS,
            GATE_FIRST,
        )  # fmt: skip
        n = tl.arange(0, NUM_GATES)
        p_gates = new_gates + row * gate_stride_b + head * gate_stride_h
        b_gates = tl.load(p_gates + n * gate_stride_n)
    norm_factor = rms_factor(query, i, i < DIM, norm_eps, DIM, QK_NORM)
    q = norm_rope(query, i, i < DIM, norm_factor, query_norm, cos, sin, DIM, QK_NORM, ROPE)
    norm_factor = rms_factor(key, i, i < DIM, norm_eps, DIM, QK_NORM)
    k = norm_rope(key, i, i < DIM, norm_factor, key_norm, cos, sin, DIM, QK_NORM, ROPE)
    new_qk = tl.sum(q.to(tl.float32) * k.to(tl.float32), 0) * (scale * LOG2E)
    m_max = tl.maximum(tl.max(m_splits, 0), new_qk)
    alpha = tl.exp2(m_splits - m_max)
    new_p = tl.exp2(new_qk - m_max)
    l_sum = tl.sum(l_splits * alpha, 0) + new_p
    result = (tl.sum(acc_splits * alpha[:, None], 0) + new_p * v.to(tl.float32)) / l_sum
    if HAS_MEMORY:
        result = result.to(out.dtype.element_ty).to(tl.float32)
        result += _gate_norm_project(loaded, norm_weight, b_o_proj, H, eps, DIM, GATE_FIRST)
    tl.store(out + (row * H + head) * DIM + j, result.to(out.dtype.element_ty), j < DIM)
    if head % (H // G) == 0:
        token = ((row * G + group) * N + index) * DIM
        k_block = norm_rope(key, j, j < DIM, norm_factor, key_norm, cos, sin, DIM, QK_NORM, ROPE)
        tl.store(keys + token + j, k_block, j < DIM)
        tl.store(values + token + j, v, j < DIM)
        if HAS_SCORES and tl.program_id(1) == 0:
            score = tl.load(new_scores + row * G + group)
            tl.store(scores + (row * G + group).to(tl.int64) * N + index, score)
    if HAS_MEMORY and tl.program_id(1) == 0:
        p_gates = gates + ((row * H + head).to(tl.int64) * N + index) * NUM_GATES
        tl.store(p_gates + n, b_gates)
