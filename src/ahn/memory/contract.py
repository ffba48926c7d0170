"""What every memory is: what it holds of a sequence, what waits beside a token, what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ahn.ops.backends import check_kernels
from ahn.ops.window_attention import ExactRows, SlotRows

States = Mapping[str, Tensor]


@dataclass(frozen=True)
class StateSpec:
    """One tensor that a memory holds of each sequence; it starts as zeros.

    Attributes:
        shape: without the batch dimension.
        dtype: None is that of the keys.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = torch.float32


class Evicted(NamedTuple):
    """E tokens that leave the window, oldest first; the last E queries read one each.

    Attributes:
        key, value: `[B, G, E, K]`.
        write_inputs: of the P <= E tokens that were cached, `[B, P, h, n]` by name; the other
            tokens are new, and theirs are made in the same call. None where none was cached.
        position: `[B or 1, E]`, real tokens of a row counted from 0; negative is padding.
        write_mask: `[B or 1, E]` bool, False where a token must not be written (a sink, padding);
            None writes all.
    """

    key: Tensor
    value: Tensor
    write_inputs: Mapping[str, Tensor] | None
    position: Tensor
    write_mask: Tensor | None


class MemoryOutput(NamedTuple):
    """What a memory gives for C new tokens, of which the last E read.

    Attributes:
        read: `[B, E, H, V]`, added to the exact attention; None adds nothing.
        states: what it holds from now on, `[B, ...]` by name.
        write_inputs: of the new tokens, `[B, C, h, n]` by name; the cache keeps them beside the
            keys until the tokens leave the window.
        exact_rows: pairs that join the softmax over sinks and window; None has none.
    """

    read: Tensor | None
    states: States
    write_inputs: Mapping[str, Tensor]
    exact_rows: ExactRows | SlotRows | None = None


class Memory(nn.Module, ABC):
    """Takes the tokens that leave the window, and gives the last queries something to read.

    Positions, padding, packing, chunks, caches, grouped heads and devices are the caller's work.
    One call per layer and forward does everything, so that hooks which offload or shard weights
    see one module forward.

    Args:
        hidden_size: width D of the hidden states.
        num_heads: query heads H.
        head_dim: size of keys and values, K = V.
        num_key_value_heads: G; None is H.
        kernels: which implementation computes it, see `ahn.ops.backends`.
    """

    num_gates: ClassVar[int] = 0  # numbers that wait beside a token for each query head

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        num_key_value_heads: int | None = None,
        kernels: str = "auto",
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads, self.head_dim = hidden_size, num_heads, head_dim
        self.num_key_value_heads = num_key_value_heads or num_heads
        self.kernels = check_kernels(kernels)
        self.q_proj: nn.Module | None = None  # its own map of the query before RoPE

    @classmethod
    @abstractmethod
    def state_specs(
        cls, num_heads: int, num_key_value_heads: int, head_dim: int
    ) -> dict[str, StateSpec]:
        """The tensors it holds of each sequence, by name; their sizes are fixed."""

    @classmethod
    def write_input_specs(
        cls, num_heads: int, num_key_value_heads: int, head_dim: int
    ) -> dict[str, StateSpec]:
        """What its `write_inputs` hold of one token, `(h, n)` by name; a session holds no others.

        dtype None is any of floats. By default a token carries nothing.
        """
        return {}

    @abstractmethod
    def forward(
        self, hidden: Tensor, query: Tensor, evicted: Evicted, states: States
    ) -> MemoryOutput:
        """Write E evicted tokens, and let the last E of C new tokens read.

        Reader i sees what tokens 1 to i of the evicted ones left, and what came before them.

        Args:
            hidden: `[B, C, D]`, the new tokens' input of the layer, after its first norm.
            query: `[B, E, H, K]`, of the last E new tokens.
            states: what it held before, by name; empty before the first write.
        """

    def init_states(
        self, batch: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Empty states `[B, ...]` by name; `dtype` is that of the keys."""
        specs = self.state_specs(self.num_heads, self.num_key_value_heads, self.head_dim)
        return {
            name: torch.zeros((batch, *spec.shape), device=device, dtype=spec.dtype or dtype)
            for name, spec in specs.items()
        }

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the parameters in place; by default there are none."""
