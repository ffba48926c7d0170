"""The (gated) delta rule by flash-linear-attention; see `ahn.ops.delta_rule` for the contract."""

from __future__ import annotations

from torch import Tensor

from ahn.ops.recurrence import RECURRENT_LENGTH, fla_arguments


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
    """`ahn.ops.delta_rule` of half-precision inputs; out in their dtype, float32 state."""
    from fla.ops import delta_rule as plain
    from fla.ops import gated_delta_rule as gated

    arguments = fla_arguments(query, key, value, initial_state, normalize) | {"scale": scale}
    recurrent = query.shape[1] <= RECURRENT_LENGTH
    if log_decay is None:
        form = plain.fused_recurrent_delta_rule if recurrent else plain.chunk_delta_rule
        return form(**arguments, beta=beta)
    form = gated.fused_recurrent_gated_delta_rule if recurrent else gated.chunk_gated_delta_rule
    return form(**arguments, g=log_decay.float(), beta=beta)
