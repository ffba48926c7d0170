"""Linear maps of one new token a row: contract and choice of implementation.

All take one token of every row, `[B, D]`, with the norm before a map and the sum after it. The
weights are read where they are, once for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ahn.ops.backends import (
    Backend,
    choose,
    device_unsupported_reason,
    dtype_unsupported_reason,
    register,
)
from ahn.ops.gemv import launch, reference
from ahn.ops.gemv.weights import Linear, Norm


def norm_linear(
    x: Tensor,
    norm: Norm,
    maps: Sequence[Linear],
    *,
    starts_chain: bool = False,
    kernels: str = "auto",
) -> Tensor:
    """The maps' outputs of the normed x side by side, `[B, sum of R]`.

    Args:
        starts_chain: whether earlier work is to have ended first, see `ahn.ops.dependent_launch`.
        kernels: `auto`, `torch` or `triton`, see `ahn.ops.backends`.

    Raises:
        ValueError: the kernels asked for cannot run here.
    """
    if choose("gemv", kernels, x) == "torch":
        return reference.norm_linear(x, norm, maps)
    return launch.norm_linear(x, norm, maps, starts_chain)


def norm_swiglu(
    x: Tensor, norm: Norm, gate: Linear, up: Linear, *, kernels: str = "auto"
) -> Tensor:
    """silu(gate x) * (up x) of the normed x, `[B, R]`; the two maps have no bias.

    `kernels` and errors are those of `norm_linear`.
    """
    run = reference if choose("gemv", kernels, x) == "torch" else launch
    return run.norm_swiglu(x, norm, gate, up)


def norm_net(
    x: Tensor, norm: Norm, first: Linear, last: Linear, *, kernels: str = "auto"
) -> Tensor:
    """A net with one hidden layer of the normed x, `[B, R]` in the dtype of its weights: float32.

    It is last(silu(first x)); both maps have a bias. `kernels` and errors as in `norm_linear`.
    """
    run = reference if choose("gemv", kernels, x) == "torch" else launch
    return run.norm_net(x, norm, first, last)


def linear_add(x: Tensor, linear: Linear, residual: Tensor, *, kernels: str = "auto") -> Tensor:
    """residual `[B, R]` + linear x; `residual` may be overwritten by it.

    `kernels` and errors are those of `norm_linear`.
    """
    run = reference if choose("gemv", kernels, x) == "torch" else launch
    return run.linear_add(x, linear, residual)


def _triton_unsupported_reason(x: Tensor) -> str | None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    return device_unsupported_reason(x) or dtype_unsupported_reason(dtypes, x)


register(Backend("gemv", "triton", 1, _triton_unsupported_reason))
