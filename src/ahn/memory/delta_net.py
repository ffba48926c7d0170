"""DeltaNet (arXiv 2406.06484): the delta rule without decay."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from ahn.memory.linear_cell import LinearCell
from ahn.memory.registry import register


@register
class DeltaNet(LinearCell):
    """S <- S + k (beta (v - k^T S))^T, read q^T S; q, k L2-normalised, q scaled by K^-1/2.

    The read is RMS-normalised per head and gated by SiLU of one gate a head.
    """

    num_gates = 1
    rule = "delta"
    write_projections: ClassVar[tuple[str, ...]] = ("b_proj",)

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, **options: Any) -> None:
        super().__init__(hidden_size, num_heads, head_dim, **options)
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.g_proj = nn.Linear(hidden_size, num_heads, bias=False)
