"""A gated MLP with frozen weights: contract and choice of implementation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ahn.ops.backends import (
    Backend,
    choose,
    device_unsupported_reason,
    dtype_unsupported_reason,
    register,
)
from ahn.ops.gated_mlp import autograd, reference


def gated_mlp(x: Tensor, mlp: Any, *, kernels: str = "auto") -> Tensor:
    """down(silu(gate(x)) up(x)) of `[..., D]`; gradients with respect to x pass.

    The Triton backend saves nothing but its input, and has the gradient of no weight.

    Args:
        mlp: has `gate_proj`, `up_proj` and `down_proj`, linear maps without a bias. Their weights
            are looked up when they are used, since sharded weights exist for that long alone.
        kernels: `auto`, `torch` or `triton`, see `ahn.ops.backends`.

    Raises:
        ValueError: the kernels asked for cannot run here.
    """
    weights = [linear.weight for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    backend = choose("gated_mlp", kernels, x, weights)
    run = autograd.gated_mlp if backend == "triton" else reference.gated_mlp
    return run(x, mlp)


def _triton_unsupported_reason(x: Tensor, weights: list[Tensor]) -> str | None:
    reason = device_unsupported_reason(x)
    reason = reason or dtype_unsupported_reason((torch.float16, torch.bfloat16), x)
    reason = reason or dtype_unsupported_reason((x.dtype,), *weights)
    if reason:
        return reason
    if torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") != x.dtype:
        return f"autocast to {x.dtype} or none, got {torch.get_autocast_dtype('cuda')}"
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return "frozen weights, got some that require a gradient"
    return None


register(Backend("gated_mlp", "triton", 1, _triton_unsupported_reason))
