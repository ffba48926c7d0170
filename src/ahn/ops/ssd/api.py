"""Mamba2's recurrence (state-space duality): contract and choice of implementation."""

from __future__ import annotations

from torch import Tensor

from ahn.ops.backends import choose
from ahn.ops.layout import check_shapes, without_autocast
from ahn.ops.recurrence import register_recurrence
from ahn.ops.ssd import fla, reference, triton

_RUN = {"torch": reference.ssd, "fla": fla.ssd, "triton": triton.ssd}

register_recurrence("ssd")


@without_autocast
def ssd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    *,
    dt: Tensor | None = None,
    normalize: bool = False,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Write each token into the state, then read it (arXiv 2405.21060, equation 1).

    S <- exp(log_decay) S + dt k v^T;  out = q^T S, for every head. Mamba2's decay depends on dt
    too (log_decay := -exp(A_log) dt), so dt = 0 writes nothing.

    Args:
        query: `[B, T, H, K]`; key: `[B, T, G, K]`; value: `[B, T, G, V]`, G a divisor of H.
        log_decay: `[B, T, H]`, <= 0.
        initial_state: `[B, H, K, V]`; None is zeros.
        dt: `[B, T, H]`, Mamba2's step size; None is 1.
        normalize: divide queries and keys by their length first, see `l2_normalize`.
        kernels: `auto`, `torch`, `fla` or `triton`, see `ahn.ops.backends`.

    Returns:
        out `[B, T, H, V]`, float32 by PyTorch, else the inputs' dtype; and
        final_state `[B, H, K, V]`, float32; both float64 for float64 inputs.

    Raises:
        ValueError: shapes do not fit, or the kernels asked for cannot run here.
    """
    check_shapes(query, key, value, initial_state)
    backend = choose("ssd", kernels, query, value, gated=True)
    return _RUN[backend](query, key, value, log_decay, initial_state, dt=dt, normalize=normalize)
