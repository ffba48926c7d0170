"""Mamba2's recurrence by Triton kernels; see `ahn.ops.ssd` for the contract."""

from __future__ import annotations

from torch import Tensor

from ahn.ops.chunk_scan import Rule, scan


def ssd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    *,
    dt: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """`ahn.ops.ssd` of bfloat16 inputs; out in their dtype, float32 state."""
    rule = Rule(delta=False, normalize=normalize)
    return scan(query, key, value, dt, log_decay, initial_state, rule)
