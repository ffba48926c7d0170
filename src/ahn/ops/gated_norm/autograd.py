"""Norm and output gate by Triton kernels, with gradients, each way in one pass over the read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ahn.ops.gated_norm.cell import EPS, CellSpec

ROUNDS = 16  # tokens of a program in the backward pass


def gated_norm(read: Tensor, output_gate: Tensor, cell: CellSpec, dtype: torch.dtype) -> Tensor:
    """`ahn.ops.gated_norm` of inputs up to float32."""
    return _GatedNorm.apply(read, output_gate, cell.norm, cell.gate_first, dtype)


class _GatedNorm(torch.autograd.Function):
    """Saves its inputs; the backward pass computes norm and gate again."""

    @staticmethod
    def forward(ctx: Any, read, output_gate, norm, gate_first, dtype):
        from ahn.ops.gated_norm.triton import gated_norm_kernel

        read, output_gate = read.contiguous(), output_gate.contiguous()
        ctx.save_for_backward(read, output_gate, norm)
        ctx.options = {"GATE_FIRST": gate_first, **_sizes(read)}
        out = torch.empty_like(read, dtype=dtype)
        tokens = read.shape[0] * read.shape[1]
        gated_norm_kernel[(tokens,)](read, output_gate, norm, out, EPS, **ctx.options)
        return out

    @staticmethod
    def backward(ctx: Any, d_out):
        from ahn.ops.gated_norm.triton import gated_norm_backward_kernel

        read, output_gate, norm = ctx.saved_tensors
        # The gradient of a product of each head lies with heads before tokens: strides are passed.
        d_out = d_out.flatten(0, 1)
        d_out = d_out if d_out.stride(-1) == 1 else d_out.contiguous()
        tokens, numbers = read.shape[0] * read.shape[1], read.shape[2] * read.shape[3]
        programs = -(-tokens // ROUNDS)
        d_read, d_gate = torch.empty_like(read), torch.empty_like(output_gate)
        d_norm = read.new_empty(programs, numbers, dtype=torch.float32)
        gated_norm_backward_kernel[(programs,)](
            read, output_gate, norm, d_out, *d_out.stride()[:2], d_read, d_gate, d_norm,
            tokens, EPS, ROUNDS=ROUNDS, **ctx.options,
        )  # fmt: skip
        d_norm = d_norm.view(-1, norm.numel()).sum(0).to(norm.dtype)
        return d_read, d_gate, d_norm, None, None


def _sizes(read: Tensor) -> dict[str, int]:
    heads, dim = read.shape[2:]
    sizes = {"HEADS": heads, "DIM": dim}
    sizes |= {"PADDED_HEADS": padded(heads), "PADDED": padded(dim)}
    return {**sizes, "num_warps": max(4, sizes["PADDED_HEADS"] * sizes["PADDED"] // 1024)}


def padded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()
