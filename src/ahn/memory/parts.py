"""Layers that cells are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ahn.ops.gated_norm import gated_rms_norm, headwise_linear


class HeadwiseLinear(nn.Module):
    """One linear map per head: `[B, T, H, in] -> [B, T, H, out]`, weight `[H, in, out]`."""

    def __init__(self, num_heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return headwise_linear(x, self.weight)


class GatedRMSNorm(nn.Module):
    """RMSNorm over the last dimension and a SiLU gate, after the norm or before it (eps 1e-5)."""

    def __init__(self, dim: int, *, gate_first: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.gate_first = gate_first

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return gated_rms_norm(x, gate, self.weight, gate_first=self.gate_first)


def masked(gate: Tensor, write_mask: Tensor | None) -> Tensor:
    """Zero an activated gate `[B, E, H]` where `write_mask` `[B or 1, E]` is False: no write."""
    return gate if write_mask is None else gate * write_mask[..., None].to(gate.dtype)
