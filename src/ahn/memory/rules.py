"""How a linear cell writes a token: one function a rule, from raw gates to the recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ahn.memory.parts import masked
from ahn.ops.delta_rule import delta_rule
from ahn.ops.layout import compute_dtype
from ahn.ops.ssd import ssd

Rule = Callable[..., tuple[Tensor, Tensor]]


def delta(cell: Any, query, key, value, gates, write_mask, state) -> tuple[Tensor, Tensor]:
    """S <- S + k (beta (v - k^T S))^T with beta = sigmoid(gate) (arXiv 2406.06484)."""
    beta = masked(gates[..., 0].to(compute_dtype(gates)).sigmoid(), write_mask)
    return _delta_rule(cell, query, key, value, beta, None, state)


def gated_delta(cell: Any, query, key, value, gates, write_mask, state) -> tuple[Tensor, Tensor]:
    """The delta rule after a decay by exp(-exp(A_log) softplus(gate + dt_bias)) (2412.06464)."""
    dtype = compute_dtype(gates)
    beta, dt = gates.to(dtype).unbind(-1)
    rate = -cell.A_log.to(dtype).exp()
    log_decay = masked(rate * F.softplus(dt + cell.dt_bias.to(dtype)), write_mask)
    beta = masked(beta.sigmoid(), write_mask)
    return _delta_rule(cell, query, key, value, beta, log_decay, state)


def state_space(cell: Any, query, key, value, gates, write_mask, state) -> tuple[Tensor, Tensor]:
    """S <- exp(-exp(A_log) dt) S + dt k v^T, dt = softplus(gate + dt_bias) (arXiv 2405.21060)."""
    dtype = compute_dtype(gates)
    dt = masked(F.softplus(gates[..., 0].to(dtype) + cell.dt_bias.to(dtype)), write_mask)
    log_decay = -cell.A_log.to(dtype).exp() * dt
    return ssd(query, key, value, log_decay, state, dt=dt, normalize=True, kernels=cell.kernels)


def _delta_rule(cell: Any, query, key, value, beta, log_decay, state) -> tuple[Tensor, Tensor]:
    return delta_rule(
        query, key, value, beta, log_decay, state,
        normalize=True, scale=cell.query_scale, kernels=cell.kernels,
    )  # fmt: skip


RULES: dict[str, Rule] = {"delta": delta, "gated_delta": gated_delta, "ssd": state_space}
