"""Linear maps of one new token a row in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ahn.ops.gemv.weights import Linear, Norm, concat_linear


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """RMSNorm of `[B, D]`."""
    return F.rms_norm(x, x.shape[1:], norm.weight, norm.eps)


def norm_linear(x: Tensor, norm: Norm, maps: Sequence[Linear]) -> Tensor:
    """`ahn.ops.gemv.norm_linear` on any device."""
    return concat_linear(rms_norm(x, norm), maps)


def norm_swiglu(x: Tensor, norm: Norm, gate: Linear, up: Linear) -> Tensor:
    """`ahn.ops.gemv.norm_swiglu` on any device."""
    x = rms_norm(x, norm)
    return F.silu(F.linear(x, gate.weight)) * F.linear(x, up.weight)


def norm_net(x: Tensor, norm: Norm, first: Linear, last: Linear) -> Tensor:
    """`ahn.ops.gemv.norm_net` on any device."""
    x = rms_norm(x, norm).to(first.weight.dtype)
    return F.linear(F.silu(F.linear(x, first.weight, first.bias)), last.weight, last.bias)


def linear_add(x: Tensor, linear: Linear, residual: Tensor) -> Tensor:
    """`ahn.ops.gemv.linear_add` on any device."""
    return residual + F.linear(x, linear.weight, linear.bias)
