"""GatedDeltaNet (arXiv 2412.06464): the delta rule with a learned decay."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from ahn.memory.base import masked, register
from ahn.memory.delta_net import DeltaNet
from ahn.ops.gated_norm import FusedCell
from ahn.ops.gemv import Linear
from ahn.ops.layout import compute_dtype


@register
class GatedDeltaNet(DeltaNet):
    """DeltaNet whose state decays: log_decay = -exp(A_log) softplus(a_proj h + dt_bias)."""

    num_gates = 2

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, **options) -> None:
        super().__init__(hidden_size, num_heads, head_dim, **options)
        self.a_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.A_log = nn.Parameter(torch.zeros(num_heads))
        self.dt_bias = nn.Parameter(torch.zeros(num_heads))
        # In released checkpoints, read by nothing: a parameter without gradient would stop DDP.
        self.register_buffer("D", torch.ones(num_heads))

    def write_gates(self, hidden: Tensor) -> Tensor:
        return torch.stack([self.b_proj(hidden), self.a_proj(hidden)], dim=-1)

    def write_and_read(self, query, key, value, gates, keep, state):
        dtype = compute_dtype(gates)
        beta, step = gates.to(dtype).unbind(-1)
        rate = -self.A_log.to(dtype).exp()
        log_decay = masked(rate * F.softplus(step + self.dt_bias.to(dtype)), keep)
        return self._delta_rule(query, key, value, masked(beta.sigmoid(), keep), log_decay, state)

    def fused(self) -> FusedCell:
        cell = super().fused()
        beta, output = cell.gate_maps
        return replace(
            cell,
            rule="gated_delta",
            gate_maps=(beta, Linear(self.a_proj.weight), output),
            rate=self.A_log,
            dt_bias=self.dt_bias,
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        heads = self.num_heads
        init.copy_(self.A_log, torch.empty(heads).uniform_(1e-4, 16).log())
        low, high = math.log(1e-3), math.log(0.1)
        step = torch.empty(heads).uniform_(low, high).exp().clamp(min=1e-4)
        init.copy_(self.dt_bias, step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        init.ones_(self.get_buffer("D"))
