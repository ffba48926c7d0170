"""Mamba2's recurrence by flash-linear-attention; see `ahn.ops.ssd` for the contract."""

from __future__ import annotations

from torch import Tensor

from ahn.ops.recurrence import RECURRENT_LENGTH, fla_arguments


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
    """`ahn.ops.ssd` of half-precision inputs, by simple gated linear attention, its equal."""
    from fla.ops import simple_gla

    arguments = fla_arguments(query, key, value, initial_state, normalize) | {"scale": 1.0}
    if dt is not None:
        arguments["v"] = (arguments["v"] * dt[..., None]).to(value.dtype)
    recurrent = query.shape[1] <= RECURRENT_LENGTH
    form = simple_gla.fused_recurrent_simple_gla if recurrent else simple_gla.chunk_simple_gla
    return form(**arguments, g=log_decay.float())
