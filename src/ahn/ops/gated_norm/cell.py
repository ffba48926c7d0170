"""A cell in the terms of the fused kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahn.ops.gemv import Linear, concat_linear

EPS = 1e-5  # of the norm


@dataclass(frozen=True)
class FusedCell:
    """A cell in the terms of the kernels.

    Attributes:
        rule: `delta`, `gated_delta` or `ssd`, see `ahn.ops.delta_rule` and `ahn.ops.ssd`.
        norm: weight of the RMS norm over a head `[V]`, after which the gate comes, or of that
            over all heads `[H V]`, before which it comes.
        o_proj: `[H, V, V]`.
        query_scale: of the normalised query.
        gate_maps: of a token's hidden state, to its write gates in order and its output gate,
            `[H]` each.
        rate, dt_bias: `[H]`, what a gate makes of the decay; None for the rule without one.
        gate_first: whether the gate comes before a norm over all heads.
    """

    rule: str
    norm: Tensor
    o_proj: Tensor
    query_scale: float
    gate_maps: tuple[Linear, ...]
    rate: Tensor | None = None
    dt_bias: Tensor | None = None
    gate_first: bool = False


def gates_of(hidden: Tensor, cell: FusedCell) -> tuple[Tensor, Tensor]:
    """Raw write gates `[B, T, H, n]` and output gates `[B, T, H]` of `[B, T, D]`, by one product.

    On the way back its gradient by `hidden` is one as well, where maps apart leave sums of them.
    """
    found = concat_linear(hidden, cell.gate_maps)
    *write, output = found.unflatten(-1, (len(cell.gate_maps), -1)).unbind(-2)
    return torch.stack(write, -1), output
