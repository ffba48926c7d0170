"""A memory cell as the kernels know it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahn.ops.gemv import Linear, concat_linear

EPS = 1e-5  # of the norm


@dataclass(frozen=True)
class CellSpec:
    """A cell as the kernels know it: tensors and constants.

    Attributes:
        rule: `delta`, `gated_delta` or `ssd`, see `ahn.ops.delta_rule` and `ahn.ops.ssd`.
        norm: weight of the RMSNorm, `[V]` of a norm over each head, `[H V]` of one over all heads.
        o_proj: `[H, V, V]`, the linear map of each head.
        query_scale: factor on the normalised query.
        gate_maps: linear maps from a token's hidden state to its write gates, in order, and then
            to its output gate, `[H]` each.
        gate_first: True gates what was read before one norm over all heads; False gates it after
            a norm over each head.
        rate, dt_bias: `[H]`, log of the decay rate and bias of dt; None for the rule without decay.
    """

    rule: str
    norm: Tensor
    o_proj: Tensor
    query_scale: float
    gate_maps: tuple[Linear, ...]
    gate_first: bool
    rate: Tensor | None = None
    dt_bias: Tensor | None = None


def gates_of(hidden: Tensor, cell: CellSpec) -> tuple[Tensor, Tensor]:
    """Raw write gates `[B, T, H, n]` and output gates `[B, T, H]` of `[B, T, D]`, by one product.

    Its gradient with respect to `hidden` is one product too; separate maps would add up several.
    """
    raw = concat_linear(hidden, cell.gate_maps)
    *write, output = raw.unflatten(-1, (len(cell.gate_maps), -1)).unbind(-2)
    return torch.stack(write, -1), output
