"""Triton kernels of the read-out; see `ahn.ops.gated_norm`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mean_square(
    read, output_gate, squares, tokens, heads,
    DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean over all heads of (read silu(gate))^2, `[tokens]`."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.arange(0, PADDED)
    both = (t < tokens)[:, None] & (i < DIM)[None, :]
    total = tl.zeros((BLOCK,), tl.float32)
    for head in range(heads):
        place = t.to(tl.int64) * heads + head
        r = tl.load(read + place[:, None] * DIM + i[None, :], both, 0.0).to(tl.float32)
        gate = tl.load(output_gate + place, t < tokens, 0.0).to(tl.float32)
        r = r * (gate * tl.sigmoid(gate))[:, None]
        total += tl.sum(r * r, 1)
    tl.store(squares + t, total / (heads * DIM), t < tokens)


@triton.jit
def project(
    read, output_gate, squares, norm, o_proj, out, tokens, heads, eps: tl.constexpr,
    GATE_FIRST: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head's block of tokens: norm, gate, and the head's own linear map."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    i = tl.arange(0, PADDED)
    both = (t < tokens)[:, None] & (i < DIM)[None, :]
    place = t.to(tl.int64) * heads + head
    r = tl.load(read + place[:, None] * DIM + i[None, :], both, 0.0).to(tl.float32)
    gate = tl.load(output_gate + place, t < tokens, 0.0).to(tl.float32)
    gate = gate * tl.sigmoid(gate)
    if GATE_FIRST:
        size = tl.load(squares + t, t < tokens, 0.0)
        weight = tl.load(norm + head * DIM + i, i < DIM, 0.0).to(tl.float32)
    else:
        size = tl.sum(r * r, 1) / DIM
        weight = tl.load(norm + i, i < DIM, 0.0).to(tl.float32)
    r = r * (gate * tl.rsqrt(size + eps))[:, None] * weight[None, :]
    square = (i < DIM)[:, None] & (i < DIM)[None, :]
    matrix = tl.load(o_proj + (head * DIM + i[:, None]) * DIM + i[None, :], square, 0.0)
    result = tl.dot(r.to(matrix.dtype), matrix)
    tl.store(out + place[:, None] * DIM + i[None, :], result.to(out.dtype.element_ty), both)


@triton.jit
def gated_norm_kernel(
    read, output_gate, norm, out, eps: tl.constexpr,
    GATE_FIRST: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    PADDED_HEADS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Norm and gate of one token, all heads."""
    t = tl.program_id(0).to(tl.int64)
    h, i = tl.arange(0, PADDED_HEADS)[:, None], tl.arange(0, PADDED)[None, :]
    both = (h < HEADS) & (i < DIM)
    place = (t * HEADS + h) * DIM + i
    x = tl.load(read + place, both, 0.0).to(tl.float32)
    gate = tl.load(output_gate + t * HEADS + h, h < HEADS, 0.0).to(tl.float32)
    gate = gate * tl.sigmoid(gate)
    weight = tl.load(norm + (h * DIM if GATE_FIRST else 0) + i, both, 0.0).to(tl.float32)
    if GATE_FIRST:
        x = x * gate
        scale = tl.rsqrt(tl.sum(x * x) / (HEADS * DIM) + eps)
        x = x * scale * weight
    else:
        scale = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)
        x = x * scale[:, None] * weight * gate
    tl.store(out + place, x.to(out.dtype.element_ty), both)


@triton.jit
def gated_norm_backward_kernel(
    read, output_gate, norm, slope, slope_t, slope_h, of_read, of_gate, of_norm, tokens,
    eps: tl.constexpr,
    GATE_FIRST: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    PADDED_HEADS: tl.constexpr, PADDED: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Gradients of some tokens one after the other; their sum by the norm's weight."""
    h, i = tl.arange(0, PADDED_HEADS)[:, None], tl.arange(0, PADDED)[None, :]
    both = (h < HEADS) & (i < DIM)
    weight = tl.load(norm + (h * DIM if GATE_FIRST else 0) + i, both, 0.0).to(tl.float32)
    by_weight = tl.zeros((PADDED_HEADS, PADDED), tl.float32)
    for step in range(ROUNDS):
        t = tl.program_id(0).to(tl.int64) * ROUNDS + step
        inside = both & (t < tokens)
        place = (t * HEADS + h) * DIM + i
        x = tl.load(read + place, inside, 0.0).to(tl.float32)
        y = tl.load(slope + t * slope_t + h.to(tl.int64) * slope_h + i, inside, 0.0).to(tl.float32)
        known = (h < HEADS) & (t < tokens)
        raw = tl.load(output_gate + t * HEADS + h, known, 0.0).to(tl.float32)
        open_ = tl.sigmoid(raw)
        gate = raw * open_
        if GATE_FIRST:
            gated = x * gate
            scale = tl.rsqrt(tl.sum(gated * gated) / (HEADS * DIM) + eps)
            unit = gated * scale
            by_weight += y * unit
            y = y * weight
            y = scale * (y - unit * (tl.sum(y * unit) / (HEADS * DIM)))
            by_gate = tl.sum(y * x, 1)[:, None]
            by_read = y * gate
        else:
            scale = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
            unit = x * scale
            by_weight += y * unit * gate
            y = y * weight
            by_gate = tl.sum(y * unit, 1)[:, None]
            y = y * gate
            by_read = scale * (y - unit * (tl.sum(y * unit, 1)[:, None] / DIM))
        by_gate = by_gate * open_ * (1.0 + raw * (1.0 - open_))
        tl.store(of_read + place, by_read.to(of_read.dtype.element_ty), inside)
        tl.store(of_gate + t * HEADS + h, by_gate.to(of_gate.dtype.element_ty), known)
    of_norm += tl.program_id(0).to(tl.int64) * (HEADS * DIM)
    tl.store(of_norm + h * DIM + i, by_weight, both)
