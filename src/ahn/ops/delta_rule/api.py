"""The (gated) delta rule: contract and choice of implementation."""

from __future__ import annotations

from torch import Tensor

from ahn.ops import fla
from ahn.ops.backends import RECURRENT_LENGTH, choose
from ahn.ops.delta_rule import triton
from ahn.ops.delta_rule.reference import chunk_delta_rule, recurrent_delta_rule
from ahn.ops.layout import check_shapes, l2_normalize, without_autocast

__all__ = ["chunk_delta_rule", "delta_rule", "recurrent_delta_rule"]


@without_autocast
def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    normalize: bool = False,
    scale: float = 1.0,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Write each token into the state, then read it (arXiv 2412.06464, equation 10).

    S <- exp(log_decay) S;  S <- S + k (beta (v - k^T S))^T;  out = q^T S, for every head.
    A token with beta 0 and log_decay 0 writes nothing.

    Args:
        query: `[B, T, H, K]`; key: `[B, T, G, K]`; value: `[B, T, G, V]`, G a divisor of H.
        beta: `[B, T, H]`, write strength in [0, 1].
        log_decay: `[B, T, H]`, <= 0; None is the rule without decay.
        initial_state: `[B, H, K, V]`; None is zeros.
        normalize: divide queries and keys by their length first, see `l2_normalize`.
        scale: of the query.
        kernels: `auto`, `torch`, `fla` or `triton`, see `ahn.ops.backends`.

    Returns:
        out `[B, T, H, V]`, float32 by PyTorch, else the inputs' dtype; and
        final_state `[B, H, K, V]`, float32; both float64 for float64 inputs.

    Raises:
        ValueError: shapes do not fit, or the kernels asked for cannot run here.
    """
    check_shapes(query, key, value, initial_state)
    chosen = choose(kernels, query, value, gated=log_decay is not None)
    if chosen != "torch":
        run = triton.delta_rule if chosen == "triton" else fla.delta_rule
        return run(
            query, key, value, beta, log_decay, initial_state, normalize=normalize, scale=scale
        )
    if normalize:
        query, key = l2_normalize(query), l2_normalize(key)
    query = query if scale == 1 else query * scale
    form = recurrent_delta_rule if query.shape[1] <= RECURRENT_LENGTH else chunk_delta_rule
    return form(query, key, value, beta, log_decay, initial_state)
