"""A cell: a memory whose state is one matrix per head, written and read token by token."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ahn.memory.contract import Evicted, Memory, MemoryOutput, States, StateSpec
from ahn.memory.parts import GatedRMSNorm, HeadwiseLinear
from ahn.ops.gated_norm import CellSpec, product_dtype

STATE, GATES = "recurrent_state", "gates"  # names of a cell's state and of what waits in the ring


class Cell(Memory):
    """Compresses evicted tokens into a `[B, H, K, V]` state and answers queries from it.

    Subclasses define `num_gates` and the three abstract methods. They override `reset_parameters`
    where a parameter needs a special start.

    Args:
        use_q_proj: give the cell its own map of the query before RoPE.
        options: see `Memory`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        use_q_proj: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(hidden_size, num_heads, head_dim, **options)
        self.o_proj = HeadwiseLinear(num_heads, head_dim, head_dim)
        if use_q_proj:
            self.q_proj = HeadwiseLinear(num_heads, head_dim, head_dim)

    @classmethod
    def state_specs(
        cls, num_heads: int, num_key_value_heads: int, head_dim: int
    ) -> dict[str, StateSpec]:
        """One float32 matrix per query head; zeros read as zero."""
        return {STATE: StateSpec((num_heads, head_dim, head_dim))}

    @classmethod
    def write_input_specs(
        cls, num_heads: int, num_key_value_heads: int, head_dim: int
    ) -> dict[str, StateSpec]:
        """The raw gates, in the cell's dtype."""
        return {GATES: StateSpec((num_heads, cls.num_gates), dtype=None)}

    @abstractmethod
    def write_gates(self, hidden: Tensor) -> Tensor:
        """Raw gates `[B, T, H, num_gates]` of tokens, in the cell's dtype, from `[B, T, D]`.

        They are cached with the token's key until it leaves the window. They are stored raw, since
        the output of the projection itself loses nothing in a half-precision cache.
        """

    @abstractmethod
    def write_and_read(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gates: Tensor,
        write_mask: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Write token i, then read with query i, for i = 1..E; float32 output and state.

        Args:
            query: `[B, E, H, K]`; key, value: `[B, E, G, K]`; gates: `[B, E, H, num_gates]`.
            write_mask: `[B or 1, E]` bool, False where the token must neither write nor decay the
                state; None writes all.
            state: `[B, H, K, V]`, None for the empty memory.
        """

    @abstractmethod
    def gated_norm(self, read: Tensor, hidden: Tensor) -> Tensor:
        """Gate and normalise what was read: `[B, E, H, V]` and the readers' `[B, E, D]`."""

    def spec(self) -> CellSpec | None:
        """The cell as the fused kernels know it; None where they do not."""
        return None

    def forward(
        self, hidden: Tensor, query: Tensor, evicted: Evicted, states: States
    ) -> MemoryOutput:
        """See `Memory.forward`; what is read comes in the dtype of `hidden`."""
        dtype = hidden.dtype
        if not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(self.o_proj.weight.dtype)
        new_gates, output_gate = self._project_gates(hidden)
        count = query.shape[1]
        if not count:
            return MemoryOutput(query, states, {GATES: new_gates})
        cached = evicted.write_inputs
        gates = new_gates if cached is None else torch.cat([cached[GATES], new_gates], 1)
        key, value = evicted.key.transpose(1, 2), evicted.value.transpose(1, 2)
        read, state = self.write_and_read(
            query, key, value, gates[:, :count], evicted.write_mask, states.get(STATE)
        )
        read = self.project(read, hidden, output_gate).to(dtype)
        return MemoryOutput(read, {STATE: state}, {GATES: new_gates})

    def _project_gates(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw write gates of tokens, and their output gates where one product gives both."""
        return self.write_gates(hidden), None

    def project(self, read: Tensor, hidden: Tensor, output_gate: Tensor | None = None) -> Tensor:
        """`gated_norm` and the linear map of each head, `[B, E, H, V]`; hidden `[B, C, D]`.

        Args:
            output_gate: `[B, C, H]`, where it is known.
        """
        normed = self.gated_norm(read, hidden[:, -read.shape[1] :])
        return self.o_proj(normed.to(product_dtype(read, self.o_proj.weight)))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise in place; `init` functions skip what was loaded from a checkpoint.

        With a zero o_proj a fresh cell adds exactly zero: the model starts as window + sinks.
        """
        for module in self.children():
            if isinstance(module, HeadwiseLinear):
                init.normal_(module.weight, std=0.02)
            elif isinstance(module, GatedRMSNorm):
                init.ones_(module.weight)
            elif isinstance(module, nn.Linear):
                init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    init.zeros_(module.bias)
        init.zeros_(self.o_proj.weight)
