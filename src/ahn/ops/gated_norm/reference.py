"""Norm, output gate and linear map of each head in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.ops.gated_norm.cell import EPS, CellSpec
from ahn.ops.layout import compute_dtype


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, *, gate_first: bool) -> Tensor:
    """RMSNorm over the last dimension and a SiLU gate, before the norm or after it.

    Args:
        x: `[..., n]`; gate: raw, of a shape that broadcasts with x; weight: `[n]`.

    Returns:
        `[..., n]` in float32, or float64 for float64 inputs.
    """
    dtype = compute_dtype(x)
    x, gate = x.to(dtype), F.silu(gate.to(dtype))
    if gate_first:
        x = x * gate
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight.to(dtype)
    return x if gate_first else x * gate


def gated_norm(read: Tensor, output_gate: Tensor, cell: CellSpec, dtype: torch.dtype) -> Tensor:
    """`ahn.ops.gated_norm` on any device, with gradients."""
    gate = output_gate[..., None]
    if not cell.gate_first:
        return gated_rms_norm(read, gate, cell.norm, gate_first=False).to(dtype)
    heads = read.shape[-2:]  # one norm is over all of them
    flat, gate = read.flatten(-2), gate.expand_as(read).flatten(-2)
    return gated_rms_norm(flat, gate, cell.norm, gate_first=True).unflatten(-1, heads).to(dtype)


def headwise_linear(x: Tensor, weight: Tensor) -> Tensor:
    """One linear map a head: `[B, E, H, V]` by `[H, V, V]`, in the dtype autocast asks for."""
    return torch.einsum("bthi,hio->btho", x, weight)


def product_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of a product of `x` and `weight`: autocast's where it is on.

    The device is that of `x`, since an offloaded weight is on none.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
