"""DeltaNet (arXiv 2406.06484): the delta rule without decay."""

from __future__ import annotations

from torch import Tensor, nn

from ahn.memory.base import GatedRMSNorm, Memory, masked, register
from ahn.ops.delta_rule import delta_rule
from ahn.ops.gated_norm import FusedCell
from ahn.ops.gemv import Linear
from ahn.ops.layout import compute_dtype


@register
class DeltaNet(Memory):
    """S <- S + k (beta (v - k^T S))^T, read q^T S; q, k L2-normalised, q scaled by K^-1/2.

    The read is RMS-normalised per head and gated by SiLU of one gate a head.
    """

    num_gates = 1

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, **options) -> None:
        super().__init__(hidden_size, num_heads, head_dim, **options)
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.g_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.o_norm = GatedRMSNorm(head_dim)

    def write_gates(self, hidden: Tensor) -> Tensor:
        return self.b_proj(hidden)[..., None]

    def write_and_read(self, query, key, value, gates, keep, state):
        beta = masked(gates[..., 0].to(compute_dtype(gates)).sigmoid(), keep)
        return self._delta_rule(query, key, value, beta, None, state)

    def _delta_rule(self, query, key, value, beta, log_decay, state) -> tuple[Tensor, Tensor]:
        scale = self.head_dim**-0.5
        return delta_rule(
            query, key, value, beta, log_decay, state,
            normalize=True, scale=scale, kernels=self.kernels,
        )  # fmt: skip

    def read_out(self, read: Tensor, hidden: Tensor) -> Tensor:
        return self.o_norm(read, self.output_gate(hidden)[..., None])

    def output_gate(self, hidden: Tensor) -> Tensor:
        return self.g_proj(hidden)

    def fused(self) -> FusedCell:
        maps = (Linear(self.b_proj.weight), Linear(self.g_proj.weight))
        scale = self.head_dim**-0.5
        norm, gate_first = self.o_norm.weight, self.o_norm.gate_first
        return FusedCell("delta", norm, self.o_proj.weight, scale, maps, gate_first)
