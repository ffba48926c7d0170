"""A gated MLP with frozen weights that saves nothing but its input for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 8192  # tokens whose activations exist at a time, enough to fill a device


def gated_mlp(x: Tensor, mlp: Any) -> Tensor:
    """`ahn.ops.gated_mlp` by Triton kernels; saves nothing but its input.

    A layer that is checkpointed ends with its MLP. When it is computed again the MLP is not: the
    checkpoint stops at the last tensor that was saved, which is the MLP's input.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _product(x, mlp)
    return _Product.apply(_SavedInput.apply(x, mlp), mlp)


class _SavedInput(torch.autograd.Function):
    """Saves the input; its gradient is made of that of the MLP's output, which it is given."""

    @staticmethod
    def forward(ctx: Any, x, mlp):
        ctx.save_for_backward(x)
        ctx.mlp = mlp
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient):
        (x,) = ctx.saved_tensors
        return _gradient(x, gradient, ctx.mlp), None


class _Product(torch.autograd.Function):
    """The MLP itself. Its output is as wide as its input: `_SavedInput` gets the gradient as is."""

    @staticmethod
    def forward(ctx: Any, x, mlp):
        return _product(x, mlp)

    @staticmethod
    def backward(ctx: Any, gradient):
        return gradient, None


def _product(x: Tensor, mlp: Any) -> Tensor:
    from ahn.ops.gated_mlp.triton import silu_mul_

    gate, up, down = (m.weight for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    out = x.new_empty(*x.shape[:-1], down.shape[0])
    for rows, out_rows in _rows(x, out):
        inner = silu_mul_(F.linear(rows, gate), F.linear(rows, up))
        torch.mm(inner, down.t(), out=out_rows)
    return out


def _gradient(x: Tensor, gradient: Tensor, mlp: Any) -> Tensor:
    from ahn.ops.gated_mlp.triton import silu_mul_backward_

    gate, up, down = (m.weight for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    out = x.new_empty(x.shape)
    for rows, d_out, d_rows in _rows(x, gradient, out):
        d_gate, d_up = F.linear(rows, gate), F.linear(rows, up)  # overwritten by their gradients
        silu_mul_backward_(d_gate, d_up, d_out @ down)
        torch.mm(d_gate, gate, out=d_rows)
        d_rows.addmm_(d_up, up)
    return out


def _rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tokens of tensors `[..., D]` in blocks `[ROWS, D]`; views of contiguous tensors."""
    return zip(*(x.reshape(-1, x.shape[-1]).split(ROWS) for x in tensors))
