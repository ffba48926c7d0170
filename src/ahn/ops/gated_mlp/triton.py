"""Triton kernels of a gated MLP's product, in place: the widest tensors are two, not three."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


def silu_mul_(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, written over `gate`; both contiguous, of one shape and dtype."""
    silu_mul_kernel[(-(-gate.numel() // BLOCK),)](gate, up, gate.numel(), BLOCK=BLOCK, num_warps=8)
    return gate


def silu_mul_backward_(gate: Tensor, up: Tensor, slope: Tensor) -> None:
    """Write the product's gradients over `gate` and `up`, `slope` being that of what it gave."""
    grid = (-(-gate.numel() // BLOCK),)
    silu_mul_backward_kernel[grid](gate, up, slope, gate.numel(), BLOCK=BLOCK, num_warps=8)


@triton.jit
def silu_mul_kernel(gate, up, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    x = tl.load(gate + i, inside, 0.0).to(tl.float32)
    y = tl.load(up + i, inside, 0.0).to(tl.float32)
    dtype = gate.dtype.element_ty
    activated = (x * tl.sigmoid(x)).to(dtype).to(tl.float32)  # rounded as the plain product's
    tl.store(gate + i, (activated * y).to(dtype), inside)


@triton.jit
def silu_mul_backward_kernel(gate, up, slope, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    x = tl.load(gate + i, inside, 0.0).to(tl.float32)
    y = tl.load(up + i, inside, 0.0).to(tl.float32)
    d = tl.load(slope + i, inside, 0.0).to(tl.float32)
    dtype = gate.dtype.element_ty
    open_ = tl.sigmoid(x)
    tl.store(gate + i, (d * y * open_ * (1.0 + x * (1.0 - open_))).to(dtype), inside)
    tl.store(up + i, (d * x * open_).to(dtype), inside)
