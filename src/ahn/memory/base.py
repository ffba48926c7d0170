"""What every memory cell is: contract, shared layers, and the registry of cells by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.metadata import entry_points
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ahn.ops.backends import check_kernels
from ahn.ops.gated_norm import (
    FusedCell,
    gated_norm,
    gated_norm_linear,
    gated_rms_norm,
    gates_of,
)

_CELLS: dict[str, type[Memory]] = {}
ENTRY_POINT_GROUP = "ahn.memories"


def register(cell: type[Memory]) -> type[Memory]:
    """Class decorator: make a cell known by its class name.

    Packages can also name theirs under the entry point group `ahn.memories`.
    Raises ValueError where another class holds the name.
    """
    if _CELLS.setdefault(cell.__name__, cell) is not cell:
        raise ValueError(f"memory: expected an unused name, got {cell.__name__!r} a second time")
    return cell


def cell_by_name(name: str) -> type[Memory]:
    """The registered cell of that name; raises ValueError that lists the known ones."""
    if name not in _CELLS:
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
            return entry.load()
        raise ValueError(f"memory: expected one of {', '.join(registered_cells())}, got {name!r}")
    return _CELLS[name]


def build_cell(
    name: str, hidden_size: int, num_heads: int, head_dim: int, **options: Any
) -> Memory:
    """A fresh, initialised cell; `options` are those of `Memory`. Raises as `cell_by_name`."""
    cell = cell_by_name(name)(hidden_size, num_heads, head_dim, **options)
    cell.reset_parameters()
    return cell


def registered_cells() -> list[str]:
    """Names of all cells: the registered ones, then those of installed entry points."""
    return list(dict.fromkeys([*_CELLS, *entry_points(group=ENTRY_POINT_GROUP).names]))


class HeadwiseLinear(nn.Module):
    """One linear map per head: `[B, T, H, in] -> [B, T, H, out]`, weight `[H, in, out]`."""

    def __init__(self, num_heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bthi,hio->btho", x, self.weight)


class GatedRMSNorm(nn.Module):
    """RMSNorm over the last dimension and a SiLU gate, after the norm or before it (eps 1e-5)."""

    def __init__(self, dim: int, *, gate_first: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.gate_first = gate_first

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return gated_rms_norm(x, gate, self.weight, gate_first=self.gate_first)


class Memory(nn.Module, ABC):
    """A cell: compresses evicted tokens into a `[B, H, K, V]` state and answers queries from it.

    Subclasses define the three abstract methods and `reset_parameters`; everything else
    (positions, padding, chunks, caches, heads, devices) is the caller's.

    Args:
        hidden_size: width of the hidden states D.
        num_heads: query heads H; keys and values may have fewer.
        head_dim: size of keys and values, K = V.
        use_q_proj: give the cell its own map of the query before RoPE.
        kernels: implementation of the recurrence, see `ahn.ops`.
    """

    num_gates: ClassVar[int]

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        use_q_proj: bool = False,
        kernels: str = "auto",
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads, self.head_dim = hidden_size, num_heads, head_dim
        self.kernels = check_kernels(kernels)
        self.o_proj = HeadwiseLinear(num_heads, head_dim, head_dim)
        self.q_proj = HeadwiseLinear(num_heads, head_dim, head_dim) if use_q_proj else None

    @abstractmethod
    def write_gates(self, hidden: Tensor) -> Tensor:
        """Raw gates `[B, T, H, num_gates]` of tokens, in the cell's dtype, from `[B, T, D]`.

        They wait beside the token's key until it leaves the window, so they are stored raw:
        the projection's own output loses nothing in a half-precision cache.
        """

    @abstractmethod
    def write_and_read(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gates: Tensor,
        keep: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Write token i, then read with query i, for i = 1..E; float32 out and state.

        Args:
            query: `[B, E, H, K]`; key, value: `[B, E, G, K]`; gates: `[B, E, H, num_gates]`.
            keep: `[B or 1, E]` bool, False where the token must write nothing; None keeps all.
            state: `[B, H, K, V]`, None for the empty memory.
        """

    @abstractmethod
    def read_out(self, read: Tensor, hidden: Tensor) -> Tensor:
        """Gate and normalise what was read: `[B, E, H, V]` and the readers' `[B, E, D]`."""

    def fused(self) -> FusedCell | None:
        """The cell as the fused kernels know it; None where they do not."""
        return None

    def output_gate(self, hidden: Tensor) -> Tensor:
        """Raw gates `[B, E, H]` on what tokens read; asked of cells with a `fused` form."""
        raise NotImplementedError

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """An empty memory, `[B, H, K, V]` zeros: it reads as zero."""
        shape = (batch, self.num_heads, self.head_dim, self.head_dim)
        return torch.zeros(shape, device=device, dtype=dtype)

    def forward(
        self,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        past_gates: Tensor | None,
        keep: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gates of the new tokens, and the E newest of them reading E evicted ones.

        One call does it all, so that offloading and sharding hooks see one module forward.

        Args:
            hidden: `[B, C, D]`, new tokens, C >= E.
            query: `[B, E, H, K]`, of the last E of them.
            key, value: `[B, E, G, K]`, evicted tokens, oldest first.
            past_gates: `[B, P, H, num_gates]` of the oldest; further ones come from `hidden`.
            keep, state: see `write_and_read`.

        Returns:
            read `[B, E, H, V]` in the dtype of hidden, the state, and gates `[B, C, H, n]`.
        """
        dtype = hidden.dtype
        if not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(self.o_proj.weight.dtype)
        fused = self._fused_on(hidden)
        output_gate = None
        if fused is not None and torch.is_grad_enabled():
            new_gates, output_gate = gates_of(hidden, fused)
        else:
            new_gates = self.write_gates(hidden)
        evicted = query.shape[1]
        if not evicted:
            return query, state, new_gates
        gates = new_gates if past_gates is None else torch.cat([past_gates, new_gates], 1)
        read, state = self.write_and_read(query, key, value, gates[:, :evicted], keep, state)
        return self._mapped(read, hidden, output_gate).to(dtype), state, new_gates

    def _fused_on(self, x: Tensor) -> FusedCell | None:
        """As the kernels know it; where none can run, a step would feel even the question."""
        return self.fused() if x.is_cuda and self.kernels != "torch" else None

    def _mapped(self, read: Tensor, hidden: Tensor, output_gate: Tensor | None = None) -> Tensor:
        """`read_out` and the linear map of each head, `[B, E, H, V]`; hidden `[B, C, D]`.

        Args:
            output_gate: `[B, C, H]`, where it is known.
        """
        weight, fused = self.o_proj.weight, self._fused_on(read)
        if fused is not None and not torch.is_grad_enabled():
            gate = self.output_gate(hidden[:, -read.shape[1] :])
            return gated_norm_linear(read, gate, fused, kernels=self.kernels)
        dtype, device = weight.dtype, read.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if fused is not None:
            # The gate is cut, not its input: on the way back that would be padded to full length.
            gate = self.output_gate(hidden) if output_gate is None else output_gate
            gate = gate[:, -read.shape[1] :]
            return self.o_proj(gated_norm(read, gate, fused, dtype, kernels=self.kernels))
        return self.o_proj(self.read_out(read, hidden[:, -read.shape[1] :]).to(dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise in place; `init` functions skip what was loaded from a checkpoint.

        A zero o_proj makes a fresh cell silent: the model starts as window + sinks.
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


def masked(gate: Tensor, keep: Tensor | None) -> Tensor:
    """Zero an activated gate `[B, E, H]` where `keep` `[B or 1, E]` is False: no write."""
    return gate if keep is None else gate * keep[..., None].to(gate.dtype)
