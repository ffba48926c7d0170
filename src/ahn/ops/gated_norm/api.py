"""Norm, output gate and linear map of what was read: contract and choice of implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.backends import (
    Backend,
    choose,
    device_unsupported_reason,
    dtype_unsupported_reason,
    register,
)
from ahn.ops.gated_norm import autograd, reference
from ahn.ops.gated_norm.cell import CellSpec

HALF = (torch.float16, torch.bfloat16)
LARGEST = 8192  # numbers of a token that a program holds, each dimension padded


def gated_norm(
    read: Tensor,
    output_gate: Tensor,
    cell: CellSpec,
    dtype: torch.dtype,
    *,
    kernels: str = "auto",
) -> Tensor:
    """norm(read) silu(gate), or norm(read silu(gate)) with the gate first; gradients pass.

    Args:
        read: `[B, E, H, V]`; output_gate: `[B, E, H]`, raw; both of any float dtype.
        dtype: of the result.
        kernels: `auto`, `torch` or `triton`, see `ahn.ops.backends`.

    Returns:
        `[B, E, H, V]`.

    Raises:
        ValueError: the kernels asked for cannot run here.
    """
    backend = choose("gated_norm", kernels, read)
    run = autograd.gated_norm if backend == "triton" else reference.gated_norm
    return run(read, output_gate, cell, dtype)


def gated_norm_linear(
    read: Tensor, output_gate: Tensor, cell: CellSpec, *, kernels: str = "auto"
) -> Tensor:
    """`gated_norm`, then the linear map of each head; gradients pass.

    Without gradients and in half precision the Triton backend does both in one pass over `read`.

    Args:
        read: `[B, E, H, V]`, any float dtype; output_gate: `[B, E, H]`, raw.
        kernels: `auto`, `torch` or `triton`, see `ahn.ops.backends`.

    Returns:
        `[B, E, H, V]` in the dtype of the weights, or autocast's.

    Raises:
        ValueError: the kernels asked for cannot run here.
    """
    backend = choose("gated_norm_linear", kernels, read, cell.o_proj)
    if backend == "triton" and one_pass_unsupported_reason(read, cell.o_proj) is None:
        from ahn.ops.gated_norm import triton

        return triton.gated_norm_linear(read, output_gate, cell)
    dtype = reference.product_dtype(read, cell.o_proj)
    normed = gated_norm(read, output_gate, cell, dtype, kernels=backend)
    return reference.headwise_linear(normed, cell.o_proj)


def _gated_norm_unsupported_reason(read: Tensor) -> str | None:
    reason = device_unsupported_reason(read)
    reason = reason or dtype_unsupported_reason((*HALF, torch.float32), read)
    size = autograd.padded(read.shape[2]) * autograd.padded(read.shape[3])
    if reason is None and size > LARGEST:
        return f"at most {LARGEST} padded numbers a token, got {size}"
    return reason


def one_pass_unsupported_reason(read: Tensor, o_proj: Tensor) -> str | None:
    """Why norm, gate and head map cannot run in one kernel; None where they can."""
    if torch.is_grad_enabled():
        return "no gradient"
    reason = device_unsupported_reason(read) or dtype_unsupported_reason(HALF, o_proj)
    if reason is None and not 16 <= o_proj.shape[-1] <= 128:
        return f"heads of 16 to 128, got {o_proj.shape[-1]}"
    return reason


def _linear_unsupported_reason(read: Tensor, o_proj: Tensor) -> str | None:
    """One pass is not always possible; the Triton norm and PyTorch's product may still be."""
    if one_pass_unsupported_reason(read, o_proj) is None:
        return None
    return _gated_norm_unsupported_reason(read)


register(Backend("gated_norm", "triton", 1, _gated_norm_unsupported_reason))
register(Backend("gated_norm_linear", "triton", 1, _linear_unsupported_reason))
