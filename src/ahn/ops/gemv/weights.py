"""Weights of norms and linear maps, and several maps as one product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """RMSNorm: x / sqrt(mean x^2 + eps), times the weight `[D]`."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Linear:
    """x -> weight x + bias, weight `[R, D]` and contiguous, bias `[R]` or None."""

    weight: Tensor
    bias: Tensor | None = None


def concat_linear(x: Tensor, maps: Sequence[Linear]) -> Tensor:
    """The maps' outputs of x `[..., D]` side by side, `[..., sum of R]`, by one product.

    For many rows, concatenating the weights costs less than separate products.
    """
    if len(maps) == 1:
        return F.linear(x, maps[0].weight, maps[0].bias)
    biases = [x.new_zeros(len(m.weight)) if m.bias is None else m.bias for m in maps]
    has_bias = any(one.bias is not None for one in maps)
    return F.linear(x, torch.cat([m.weight for m in maps]), torch.cat(biases) if has_bias else None)
