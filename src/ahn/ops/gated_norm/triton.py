"""Triton kernels of norm, output gate and linear map; see `ahn.ops.gated_norm`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ahn.ops.gated_norm.cell import EPS, CellSpec

BLOCK = 64  # tokens a program


def gated_norm_linear(read: Tensor, output_gate: Tensor, cell: CellSpec) -> Tensor:
    """`ahn.ops.gated_norm.gated_norm_linear` without gradients, of half-precision weights."""
    batch, length, heads, dim = read.shape
    read, output_gate = read.contiguous(), output_gate.contiguous()
    out = read.new_empty(read.shape, dtype=cell.o_proj.dtype)
    tokens = batch * length
    blocks = -(-tokens // BLOCK)
    squares = read.new_empty(tokens if cell.gate_first else 0, dtype=torch.float32)
    sizes = {"DIM": dim, "PADDED": 1 << (dim - 1).bit_length(), "BLOCK": BLOCK}
    if cell.gate_first:
        mean_square_kernel[(blocks,)](read, output_gate, squares, tokens, heads, **sizes)
    gated_norm_linear_kernel[(blocks, heads)](
        read, output_gate, squares, cell.norm, cell.o_proj, out, tokens, heads, EPS,
        GATE_FIRST=cell.gate_first, **sizes,
    )  # fmt: skip
    return out


@triton.jit
def mean_square_kernel(
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
def gated_norm_linear_kernel(
    read, output_gate, squares, norm, o_proj, out, tokens, heads, eps: tl.constexpr,
    GATE_FIRST: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of tokens of one head: norm, gate, and the linear map of the head."""
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
    read, output_gate, norm, d_out, d_out_t, d_out_h, d_read, d_gate, d_norm, tokens,
    eps: tl.constexpr,
    GATE_FIRST: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    PADDED_HEADS: tl.constexpr, PADDED: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Gradients of ROUNDS tokens, one by one; that of the norm's weight is summed over them."""
    h, i = tl.arange(0, PADDED_HEADS)[:, None], tl.arange(0, PADDED)[None, :]
    both = (h < HEADS) & (i < DIM)
    weight = tl.load(norm + (h * DIM if GATE_FIRST else 0) + i, both, 0.0).to(tl.float32)
    by_weight = tl.zeros((PADDED_HEADS, PADDED), tl.float32)
    for number in range(ROUNDS):
        t = tl.program_id(0).to(tl.int64) * ROUNDS + number
        inside = both & (t < tokens)
        place = (t * HEADS + h) * DIM + i
        x = tl.load(read + place, inside, 0.0).to(tl.float32)
        y = tl.load(d_out + t * d_out_t + h.to(tl.int64) * d_out_h + i, inside, 0.0).to(tl.float32)
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
        tl.store(d_read + place, by_read.to(d_read.dtype.element_ty), inside)
        tl.store(d_gate + t * HEADS + h, by_gate.to(d_gate.dtype.element_ty), known)
    d_norm += tl.program_id(0).to(tl.int64) * (HEADS * DIM)
    tl.store(d_norm + h * DIM + i, by_weight, both)
