"""RMSNorm with a frozen weight: one pass over the rows each way."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

TILE = 2048  # numbers of a program, where rows are short
LARGEST = 16384


def why_not_rms_norm(x: Tensor, weight: Tensor) -> str | None:
    """What `rms_norm` would need; None where it can run."""
    if not x.is_cuda or find_spec("triton") is None:
        return f"a CUDA device and triton, got {x.device}"
    if x.dtype == torch.float64:
        return "at most float32, got float64"
    if torch.is_grad_enabled() and weight.requires_grad:
        return "a frozen weight"
    if x.shape[-1] > LARGEST:
        return f"rows of at most {LARGEST} numbers, got {x.shape[-1]}"
    return None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight x / sqrt(mean x^2 + eps) over the last dimension, rounded as transformers' own."""
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        from ahn.ops.rms_norm.kernels import rms_norm_kernel

        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        out = torch.empty_like(x)
        _launch(rms_norm_kernel, x, weight, out, eps)
        return out

    @staticmethod
    def backward(ctx, slope):
        from ahn.ops.rms_norm.kernels import rms_norm_backward_kernel

        x, weight = ctx.saved_tensors
        by_x = torch.empty_like(x)
        _launch(rms_norm_backward_kernel, x, weight, slope.contiguous(), by_x, ctx.eps)
        return by_x, None, None


def _launch(kernel: Any, x: Tensor, *rest: Any) -> None:
    size = x.shape[-1]
    padded = 1 << (size - 1).bit_length()
    rows, count = max(1, TILE // padded), x.numel() // size
    *tensors, eps = rest
    kernel[(-(-count // rows),)](
        x, *tensors, count, eps, SIZE=size, PADDED=padded, ROWS=rows,
        num_warps=4 if padded <= 4096 else 8,
    )  # fmt: skip
