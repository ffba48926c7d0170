"""Mamba2's recurrence (state-space duality): contract and choice of implementation."""

from __future__ import annotations

from torch import Tensor

from ahn.ops import fla
from ahn.ops.backends import RECURRENT_LENGTH, choose
from ahn.ops.layout import check_shapes, l2_normalize, repeat_heads, without_autocast
from ahn.ops.ssd import triton
from ahn.ops.ssd.reference import chunk_ssd, recurrent_ssd

__all__ = ["chunk_ssd", "recurrent_ssd", "ssd"]


@without_autocast
def ssd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    *,
    step: Tensor | None = None,
    normalize: bool = False,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Write each token into the state, then read it (arXiv 2405.21060, equation 1).

    S <- exp(log_decay) S + dt k v^T;  out = q^T S, for every head. Mamba2's decay depends on its
    step too (log_decay := -exp(A_log) dt), so dt = 0 writes nothing.

    Args:
        query: `[B, T, H, K]`; key: `[B, T, G, K]`; value: `[B, T, G, V]`, G a divisor of H.
        log_decay: `[B, T, H]`, <= 0.
        initial_state: `[B, H, K, V]`; None is zeros.
        step: dt `[B, T, H]`; None is 1.
        normalize: divide queries and keys by their length first, see `l2_normalize`.
        kernels: `auto`, `torch`, `fla` or `triton`, see `ahn.ops.backends`.

    Returns:
        out `[B, T, H, V]`, float32 by PyTorch, else the inputs' dtype; and
        final_state `[B, H, K, V]`, float32; both float64 for float64 inputs.

    Raises:
        ValueError: shapes do not fit, or the kernels asked for cannot run here.
    """
    check_shapes(query, key, value, initial_state)
    chosen = choose(kernels, query, value, gated=True)
    if chosen != "torch":
        run = triton.ssd if chosen == "triton" else fla.ssd
        return run(query, key, value, log_decay, initial_state, step, normalize)
    if normalize:
        query, key = l2_normalize(query), l2_normalize(key)
    if step is not None:
        key = repeat_heads(key, query.shape[2]) * step[..., None]
        value = repeat_heads(value, query.shape[2])
    form = recurrent_ssd if query.shape[1] <= RECURRENT_LENGTH else chunk_ssd
    return form(query, key, value, log_decay, initial_state)
