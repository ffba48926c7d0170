"""Cells with a linear recurrence that this package has kernels for, each told once as a spec."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ahn.memory.cell import Cell
from ahn.memory.parts import GatedRMSNorm
from ahn.memory.rules import RULES
from ahn.ops.gated_norm import (
    CellSpec,
    gated_norm,
    gated_norm_linear,
    gates_of,
    one_pass_unsupported_reason,
    product_dtype,
)
from ahn.ops.gemv import Linear


class LinearCell(Cell):
    """A cell that is described by its class attributes alone; kernels and PyTorch follow them.

    Attributes:
        rule: how a token is written, a name in `ahn.memory.rules.RULES`.
        write_projections: names of the linear maps from hidden states to write gates, in order.
        output_projection: name of the linear map to the output gate, one a head.
        norm_name: name of the `GatedRMSNorm`.
        gate_first: whether the read is gated first and normalised over all heads, or normalised
            per head and gated afterwards.
    """

    rule: ClassVar[str]
    write_projections: ClassVar[tuple[str, ...]]
    output_projection: ClassVar[str] = "g_proj"
    norm_name: ClassVar[str] = "o_norm"
    gate_first: ClassVar[bool] = False

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, **options: Any) -> None:
        super().__init__(hidden_size, num_heads, head_dim, **options)
        size = num_heads * head_dim if self.gate_first else head_dim
        setattr(self, self.norm_name, GatedRMSNorm(size, gate_first=self.gate_first))

    def write_gates(self, hidden: Tensor) -> Tensor:
        """See `Cell.write_gates`."""
        projections = (getattr(self, name) for name in self.write_projections)
        return torch.stack([projection(hidden) for projection in projections], -1)

    def output_gate(self, hidden: Tensor) -> Tensor:
        """Raw gates `[B, T, H]` on what tokens read."""
        return getattr(self, self.output_projection)(hidden)

    def write_and_read(self, query, key, value, gates, write_mask, state):
        """See `Cell.write_and_read`."""
        return RULES[self.rule](self, query, key, value, gates, write_mask, state)

    def gated_norm(self, read: Tensor, hidden: Tensor) -> Tensor:
        """See `Cell.gated_norm`."""
        norm, gate = getattr(self, self.norm_name), self.output_gate(hidden)
        if not self.gate_first:
            return norm(read, gate[..., None])
        gate = gate.repeat_interleave(self.head_dim, dim=-1)
        return norm(read.flatten(-2), gate).unflatten(-1, read.shape[-2:])

    def spec(self) -> CellSpec:
        """See `Cell.spec`."""
        names = (*self.write_projections, self.output_projection)
        return CellSpec(
            rule=self.rule,
            norm=getattr(self, self.norm_name).weight,
            gate_first=self.gate_first,
            o_proj=self.o_proj.weight,
            query_scale=self.query_scale,
            gate_maps=tuple(_linear(getattr(self, name)) for name in names),
            rate=getattr(self, "A_log", None),
            dt_bias=getattr(self, "dt_bias", None),
        )

    @property
    def query_scale(self) -> float:
        """Factor on the normalised query."""
        return self.head_dim**-0.5

    def _project_gates(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """On a GPU with gradients one product gives all gates, so its gradient is one as well."""
        spec = self._kernel_spec(hidden)
        if spec is not None and torch.is_grad_enabled():
            return gates_of(hidden, spec)
        return super()._project_gates(hidden)

    def project(self, read: Tensor, hidden: Tensor, output_gate: Tensor | None = None) -> Tensor:
        """See `Cell.project`; by kernels where they can run."""
        spec, count = self._kernel_spec(read), read.shape[1]
        if spec is None:
            return super().project(read, hidden)
        if one_pass_unsupported_reason(read, spec.o_proj) is None:
            gate = self.output_gate(hidden[:, -count:])
            return gated_norm_linear(read, gate, spec, kernels=self.kernels)
        # The gate is cut, not its input: the gradient of the input would be padded to full length.
        gate = self.output_gate(hidden) if output_gate is None else output_gate
        dtype = product_dtype(read, spec.o_proj)
        normed = gated_norm(read, gate[:, -count:], spec, dtype, kernels=self.kernels)
        return self.o_proj(normed)

    def _kernel_spec(self, x: Tensor) -> CellSpec | None:
        """The spec where kernels can run at all: elsewhere even asking would cost time."""
        return self.spec() if x.is_cuda and self.kernels != "torch" else None


def _linear(projection: nn.Linear) -> Linear:
    return Linear(projection.weight, projection.bias)
