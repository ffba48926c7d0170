"""GatedDeltaNet (arXiv 2412.06464): the delta rule with a learned decay."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from ahn.memory.delta_net import DeltaNet
from ahn.memory.registry import register


@register
class GatedDeltaNet(DeltaNet):
    """DeltaNet whose state decays: log_decay = -exp(A_log) softplus(a_proj h + dt_bias)."""

    num_gates = 2
    rule = "gated_delta"
    write_projections = ("b_proj", "a_proj")

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, **options: Any) -> None:
        super().__init__(hidden_size, num_heads, head_dim, **options)
        self.a_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.A_log = nn.Parameter(torch.zeros(num_heads))
        self.dt_bias = nn.Parameter(torch.zeros(num_heads))
        # Released checkpoints have it and nothing reads it; a parameter without gradient would
        # stop DDP.
        self.register_buffer("D", torch.ones(num_heads))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the released code: decay rates up to 16, time steps from 1e-3 to 0.1."""
        super().reset_parameters()
        heads = self.num_heads
        init.copy_(self.A_log, torch.empty(heads).uniform_(1e-4, 16).log())
        low, high = math.log(1e-3), math.log(0.1)
        dt = torch.empty(heads).uniform_(low, high).exp().clamp(min=1e-4)
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        init.ones_(self.get_buffer("D"))
