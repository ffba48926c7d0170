"""Mamba2 (arXiv 2405.21060): a decaying sum of outer products."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from ahn.memory.linear_cell import LinearCell
from ahn.memory.registry import register


@register
class Mamba2(LinearCell):
    """S <- exp(-exp(A_log) dt) S + dt k v^T, read q^T S; q, k L2-normalised, no convolution, no D.

    dt = softplus(dt_proj h + dt_bias). The read is gated first, then RMS-normalised over all heads.
    """

    num_gates = 1
    rule = "ssd"
    write_projections = ("dt_proj",)
    norm_name = "norm"
    gate_first = True
    query_scale = 1.0

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, **options: Any) -> None:
        super().__init__(hidden_size, num_heads, head_dim, **options)
        self.dt_bias = nn.Parameter(torch.zeros(num_heads))
        self.A_log = nn.Parameter(torch.zeros(num_heads))
        self.dt_proj = nn.Linear(hidden_size, num_heads)
        self.g_proj = nn.Linear(hidden_size, num_heads)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the released code: decay rates 1 to H, dt_bias 1."""
        super().reset_parameters()
        init.ones_(self.dt_bias)
        init.copy_(self.A_log, torch.arange(1, self.num_heads + 1).float().log())
