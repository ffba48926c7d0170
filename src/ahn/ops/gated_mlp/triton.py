"""Triton kernels of silu(gate) * up, in place: two wide tensors exist, not three."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


def silu_mul_(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, written over `gate`; both contiguous, of one shape and dtype."""
    silu_mul_kernel[(-(-gate.numel() // BLOCK),)](gate, up, gate.numel(), BLOCK=BLOCK, num_warps=8)
    return gate


def silu_mul_backward_(gate: Tensor, up: Tensor, d_out: Tensor) -> None:
    """Overwrite `gate` and `up` by their gradients, from the gradient `d_out` of the product."""
    grid = (-(-gate.numel() // BLOCK),)
    silu_mul_backward_kernel[grid](gate, up, d_out, gate.numel(), BLOCK=BLOCK, num_warps=8)


@triton.jit
def silu_mul_kernel(gate, up, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    x = tl.load(gate + i, inside, 0.0).to(tl.float32)
    y = tl.load(up + i, inside, 0.0).to(tl.float32)
    dtype = gate.dtype.element_ty
    activated = (x * tl.sigmoid(x)).to(dtype).to(tl.float32)  # rounded as PyTorch rounds it
    tl.store(gate + i, (activated * y).to(dtype), inside)


@triton.jit
def silu_mul_backward_kernel(gate, up, d_out, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    x = tl.load(gate + i, inside, 0.0).to(tl.float32)
    y = tl.load(up + i, inside, 0.0).to(tl.float32)
    d = tl.load(d_out + i, inside, 0.0).to(tl.float32)
    dtype = gate.dtype.element_ty
    open_ = tl.sigmoid(x)
    tl.store(gate + i, (d * y * open_ * (1.0 + x * (1.0 - open_))).to(dtype), inside)
    tl.store(up + i, (d * x * open_).to(dtype), inside)
