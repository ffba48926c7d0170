"""The (gated) delta rule: contract and choice of implementation."""

from __future__ import annotations

from torch import Tensor

from ahn.ops.backends import choose
from ahn.ops.delta_rule import fla, reference, triton
from ahn.ops.layout import check_shapes, without_autocast
from ahn.ops.recurrence import register_recurrence

_RUN = {"torch": reference.delta_rule, "fla": fla.delta_rule, "triton": triton.delta_rule}

register_recurrence("delta_rule")


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
        scale: factor on the query.
        kernels: `auto`, `torch`, `fla` or `triton`, see `ahn.ops.backends`.

    Returns:
        out `[B, T, H, V]`, float32 by PyTorch, else the inputs' dtype; and
        final_state `[B, H, K, V]`, float32; both float64 for float64 inputs.

    Raises:
        ValueError: shapes do not fit, or the kernels asked for cannot run here.
    """
    check_shapes(query, key, value, initial_state)
    backend = choose("delta_rule", kernels, query, value, gated=log_decay is not None)
    return _RUN[backend](
        query, key, value, beta, log_decay, initial_state, normalize=normalize, scale=scale
    )
