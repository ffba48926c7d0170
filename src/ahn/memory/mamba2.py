"""Mamba2 (arXiv 2405.21060): a decaying sum of outer products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from ahn.memory.base import GatedRMSNorm, Memory, masked, register
from ahn.ops.gated_norm import FusedCell
from ahn.ops.gemv import Linear
from ahn.ops.layout import compute_dtype
from ahn.ops.ssd import ssd


@register
class Mamba2(Memory):
    """S <- exp(-exp(A_log) dt) S + dt k v^T, read q^T S; q, k L2-normalised, no convolution, no D.

    dt = softplus(dt_proj h + dt_bias). The read is gated first, then RMS-normalised over all heads.
    """

    num_gates = 1

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, **options) -> None:
        super().__init__(hidden_size, num_heads, head_dim, **options)
        self.dt_bias = nn.Parameter(torch.zeros(num_heads))
        self.A_log = nn.Parameter(torch.zeros(num_heads))
        self.norm = GatedRMSNorm(num_heads * head_dim, gate_first=True)
        self.dt_proj = nn.Linear(hidden_size, num_heads)
        self.g_proj = nn.Linear(hidden_size, num_heads)

    def write_gates(self, hidden: Tensor) -> Tensor:
        return self.dt_proj(hidden)[..., None]

    def write_and_read(self, query, key, value, gates, keep, state):
        dtype = compute_dtype(gates)
        dt = F.softplus(gates[..., 0].to(dtype) + self.dt_bias.to(dtype))
        dt = masked(dt, keep)
        log_decay = -self.A_log.to(dtype).exp() * dt
        return ssd(query, key, value, log_decay, state, dt=dt, normalize=True, kernels=self.kernels)

    def read_out(self, read: Tensor, hidden: Tensor) -> Tensor:
        gate = self.output_gate(hidden).repeat_interleave(self.head_dim, dim=-1)
        return self.norm(read.flatten(-2), gate).unflatten(-1, read.shape[-2:])

    def output_gate(self, hidden: Tensor) -> Tensor:
        return self.g_proj(hidden)

    def fused(self) -> FusedCell:
        maps = tuple(Linear(x.weight, x.bias) for x in (self.dt_proj, self.g_proj))
        norm, o_proj = self.norm.weight, self.o_proj.weight
        gates = (self.norm.gate_first, self.A_log, self.dt_bias)
        return FusedCell("ssd", norm, o_proj, 1.0, maps, *gates)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        init.ones_(self.dt_bias)
        init.copy_(self.A_log, torch.arange(1, self.num_heads + 1).float().log())
