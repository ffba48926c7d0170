"""Triton kernels of RMSNorm; see `ahn.ops.rms_norm`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    x, weight, out, count, eps: tl.constexpr,
    SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, PADDED)[None, :]
    inside = (row < count) & (i < SIZE)
    known = tl.load(x + row * SIZE + i, inside, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(known * known, 1) / SIZE + eps)[:, None]
    dtype = x.dtype.element_ty
    unit = (known * scale).to(dtype).to(tl.float32)  # rounded as transformers does
    factor = tl.load(weight + i, i < SIZE, 0.0).to(tl.float32)
    tl.store(out + row * SIZE + i, (unit * factor).to(dtype), inside)


@triton.jit
def rms_norm_backward_kernel(
    x, weight, slope, by_x, count, eps: tl.constexpr,
    SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, PADDED)[None, :]
    inside = (row < count) & (i < SIZE)
    known = tl.load(x + row * SIZE + i, inside, 0.0).to(tl.float32)
    d = tl.load(slope + row * SIZE + i, inside, 0.0).to(tl.float32)
    d *= tl.load(weight + i, i < SIZE, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(known * known, 1) / SIZE + eps)[:, None]
    unit = known * scale
    d = scale * (d - unit * (tl.sum(d * unit, 1) / SIZE)[:, None])
    tl.store(by_x + row * SIZE + i, d.to(by_x.dtype.element_ty), inside)
