"""flash-linear-attention behind this package's contracts (CUDA, half precision inputs)."""

from __future__ import annotations

from torch import Tensor

from ahn.ops.backends import RECURRENT_LENGTH
from ahn.ops.layout import repeat_heads


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
    """`ahn.ops.delta_rule` by fla's kernels; `[B, T, H, K]` layout, float32 state."""
    from fla.ops import delta_rule as plain
    from fla.ops import gated_delta_rule as gated

    arguments = _arguments(query, key, value, initial_state, normalize) | {"scale": scale}
    recurrent = query.shape[1] <= RECURRENT_LENGTH
    if log_decay is None:
        form = plain.fused_recurrent_delta_rule if recurrent else plain.chunk_delta_rule
        return form(**arguments, beta=beta)
    form = gated.fused_recurrent_gated_delta_rule if recurrent else gated.chunk_gated_delta_rule
    return form(**arguments, g=log_decay.float(), beta=beta)


def ssd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    step: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """`ahn.ops.ssd` by fla's simple gated linear attention, the same recurrence."""
    from fla.ops import simple_gla

    arguments = _arguments(query, key, value, initial_state, normalize) | {"scale": 1.0}
    if step is not None:
        arguments["v"] = (arguments["v"] * step[..., None]).to(value.dtype)
    recurrent = query.shape[1] <= RECURRENT_LENGTH
    form = simple_gla.fused_recurrent_simple_gla if recurrent else simple_gla.chunk_simple_gla
    return form(**arguments, g=log_decay.float())


def _arguments(
    query: Tensor, key: Tensor, value: Tensor, initial_state: Tensor | None, normalize: bool
) -> dict:
    from fla.modules.norm.l2norm import l2norm

    heads, dtype = query.shape[2], value.dtype
    query, key = (x.to(dtype).contiguous() for x in (query, key))
    if normalize:
        query, key = l2norm(query), l2norm(key)
    return {
        "q": query,
        "k": repeat_heads(key, heads),
        "v": repeat_heads(value, heads).contiguous(),
        "initial_state": initial_state,
        "output_final_state": True,
    }
