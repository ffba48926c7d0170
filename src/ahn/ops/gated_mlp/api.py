"""A gated MLP with frozen weights: of all it computes, nothing but its input is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 8192  # tokens whose activations exist at a time: enough to fill a device


def why_not_gated_mlp(x: Tensor, weights: list[Tensor]) -> str | None:
    """What `gated_mlp` would need; None where it can run."""
    if not x.is_cuda:
        return f"a CUDA device, got {x.device}"
    if x.dtype not in (torch.float16, torch.bfloat16) or {w.dtype for w in weights} != {x.dtype}:
        return f"input and weights of one half precision, got {x.dtype} and {weights[0].dtype}"
    if torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") != x.dtype:
        return f"autocast to {x.dtype} or none, got {torch.get_autocast_dtype('cuda')}"
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return "frozen weights"
    return None


def gated_mlp(x: Tensor, mlp: Any) -> Tensor:
    """down(silu(gate(x)) up(x)) of `[..., D]`.

    Layers that are computed again for their gradient end with their MLP. There it is not computed
    again: a checkpoint stops once it has the last tensor to keep, which is the input.

    Args:
        mlp: has `gate_proj`, `up_proj` and `down_proj`, linear maps without a bias. Their weights
            are looked up when they are used: sharded ones are there for that long.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _product(x, mlp)
    return _Computed.apply(_Kept.apply(x, mlp), mlp)


class _Kept(torch.autograd.Function):
    """Keeps the input, and turns the gradient by the MLP's output into that by its input."""

    @staticmethod
    def forward(ctx, x, mlp):
        ctx.save_for_backward(x)
        ctx.mlp = mlp
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return _gradient(x, gradient, ctx.mlp), None


class _Computed(torch.autograd.Function):
    """The MLP, that hands the gradient by its output, as wide as its input, on to `_Kept`."""

    @staticmethod
    def forward(ctx, x, mlp):
        return _product(x, mlp)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def _product(x: Tensor, mlp: Any) -> Tensor:
    from ahn.ops.gated_mlp.triton import silu_mul_

    gate, up, down = (m.weight for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    out = x.new_empty(*x.shape[:-1], down.shape[0])
    for rows, to in _rows(x, out):
        wide = silu_mul_(F.linear(rows, gate), F.linear(rows, up))
        torch.mm(wide, down.t(), out=to)
    return out


def _gradient(x: Tensor, gradient: Tensor, mlp: Any) -> Tensor:
    from ahn.ops.gated_mlp.triton import silu_mul_backward_

    gate, up, down = (m.weight for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    out = x.new_empty(x.shape)
    for rows, slope, to in _rows(x, gradient, out):
        by_gate, by_up = F.linear(rows, gate), F.linear(rows, up)
        silu_mul_backward_(by_gate, by_up, slope @ down)
        torch.mm(by_gate, gate, out=to)
        to.addmm_(by_up, up)
    return out


def _rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tokens of `[..., D]`, some at a time: views `[ROWS, D]` of what is contiguous."""
    return zip(*(x.reshape(-1, x.shape[-1]).split(ROWS) for x in tensors))
