"""Norm and gate of what a state gave, with gradients, each way in one pass over it."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from ahn.ops.gated_norm.cell import EPS, FusedCell

ROUNDS = 16  # tokens of a program in the backward pass
LARGEST = 8192  # numbers of a token that a program holds


def why_not_gated_norm(read: Tensor) -> str | None:
    """What the kernels would need; None where they can run."""
    if not read.is_cuda or find_spec("triton") is None:
        return f"a CUDA device and triton, got {read.device}"
    if read.dtype == torch.float64:
        return "at most float32, got float64"
    if _padded(read.shape[2]) * _padded(read.shape[3]) > LARGEST:
        return f"at most {LARGEST} numbers a token, got {read.shape[2] * read.shape[3]}"
    return None


def gated_norm(read: Tensor, output_gate: Tensor, cell: FusedCell, dtype: torch.dtype) -> Tensor:
    """norm(read) silu(gate), or norm(read silu(gate)) with the gate first, `[B, E, H, V]`.

    Args:
        read: `[B, E, H, V]`; output_gate: `[B, E, H]`, raw; both of any float dtype up to float32.
        dtype: of the result.
    """
    return _GatedNorm.apply(read, output_gate, cell.norm, cell.gate_first, dtype)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, read, output_gate, norm, gate_first, dtype):
        from ahn.ops.gated_norm.triton import gated_norm_kernel

        read, output_gate = read.contiguous(), output_gate.contiguous()
        ctx.save_for_backward(read, output_gate, norm)
        ctx.options = {"GATE_FIRST": gate_first, **_sizes(read)}
        out = torch.empty_like(read, dtype=dtype)
        tokens = read.shape[0] * read.shape[1]
        gated_norm_kernel[(tokens,)](read, output_gate, norm, out, EPS, **ctx.options)
        return out

    @staticmethod
    def backward(ctx, slope):
        from ahn.ops.gated_norm.triton import gated_norm_backward_kernel

        read, output_gate, norm = ctx.saved_tensors
        slope = slope.flatten(0, 1)  # of a product head by head: heads come before tokens
        slope = slope if slope.stride(-1) == 1 else slope.contiguous()
        tokens, numbers = read.shape[0] * read.shape[1], read.shape[2] * read.shape[3]
        programs = -(-tokens // ROUNDS)
        of_read, of_gate = torch.empty_like(read), torch.empty_like(output_gate)
        of_norm = read.new_empty(programs, numbers, dtype=torch.float32)
        gated_norm_backward_kernel[(programs,)](
            read, output_gate, norm, slope, *slope.stride()[:2], of_read, of_gate, of_norm,
            tokens, EPS, ROUNDS=ROUNDS, **ctx.options,
        )  # fmt: skip
        of_norm = of_norm.view(-1, norm.numel()).sum(0).to(norm.dtype)
        return of_read, of_gate, of_norm, None, None


def _sizes(read: Tensor) -> dict[str, int]:
    heads, dim = read.shape[2:]
    sizes = {"HEADS": heads, "DIM": dim}
    sizes |= {"PADDED_HEADS": _padded(heads), "PADDED": _padded(dim)}
    return {**sizes, "num_warps": max(4, sizes["PADDED_HEADS"] * sizes["PADDED"] // 1024)}


def _padded(size: int) -> int:
    return 1 << (size - 1).bit_length()
