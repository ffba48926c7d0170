"""What a state gave, normalised, gated and mapped head by head, in one pass over it."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from ahn.ops.gated_norm.autograd import gated_norm, why_not_gated_norm
from ahn.ops.gated_norm.cell import EPS, FusedCell, gates_of

__all__ = [
    "EPS",
    "FusedCell",
    "gated_norm",
    "gates_of",
    "read_out",
    "why_not_fused_read_out",
    "why_not_gated_norm",
]

BLOCK = 64  # tokens a program


def why_not_fused_read_out(read: Tensor, o_proj: Tensor) -> str | None:
    """What the kernel would need; None where it can run."""
    if not read.is_cuda or find_spec("triton") is None:
        return f"a CUDA device and triton, got {read.device}"
    if torch.is_grad_enabled():
        return "no gradient"
    if o_proj.dtype not in (torch.float16, torch.bfloat16):
        return f"weights in float16 or bfloat16, got {o_proj.dtype}"
    if not 16 <= o_proj.shape[-1] <= 128:
        return f"heads of 16 to 128, got {o_proj.shape[-1]}"
    return None


def read_out(read: Tensor, output_gate: Tensor, cell: FusedCell) -> Tensor:
    """o_proj(norm(read) silu(gate)), or o_proj(norm(read silu(gate))) with the gate first.

    Args:
        read: `[B, E, H, V]`, any float dtype; output_gate: `[B, E, H]`, raw.

    Returns:
        `[B, E, H, V]` in the dtype of the weights.
    """
    from ahn.ops.gated_norm import triton as kernels

    batch, length, heads, dim = read.shape
    read, output_gate = read.contiguous(), output_gate.contiguous()
    out = read.new_empty(read.shape, dtype=cell.o_proj.dtype)
    tokens, padded = batch * length, 1 << (dim - 1).bit_length()
    blocks = -(-tokens // BLOCK)
    squares = read.new_empty(tokens if cell.gate_first else 0, dtype=torch.float32)
    sizes = {"DIM": dim, "PADDED": padded, "BLOCK": BLOCK}
    if cell.gate_first:
        kernels.mean_square[(blocks,)](read, output_gate, squares, tokens, heads, **sizes)
    kernels.project[(blocks, heads)](
        read, output_gate, squares, cell.norm, cell.o_proj, out, tokens, heads, EPS,
        GATE_FIRST=cell.gate_first, **sizes,
    )  # fmt: skip
    return out
