"""The (gated) delta rule by Triton kernels; see `ahn.ops.delta_rule` for the contract."""

from __future__ import annotations

from torch import Tensor

from ahn.ops.chunk_scan import Rule, scan


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    *,
    normalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`ahn.ops.delta_rule` of bfloat16 inputs; out in their dtype, float32 state."""
    rule = Rule(delta=True, normalize=normalize, scale=scale)
    return scan(query, key, value, beta, log_decay, initial_state, rule)
