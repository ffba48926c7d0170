"""Tensors of a batch, whose rows are moved as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ahn.layer.ring import with_rows


class BatchRows(ABC):
    """What holds tensors `[B, ...]`, and can change the rows of all of them alike."""

    @abstractmethod
    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor held by what `change` makes of it."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in the order of `beam_idx` `[B]`."""
        self.map_tensors(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self.map_tensors(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows `indices`."""
        self.map_tensors(lambda x: x[indices.to(x.device)])


class BatchedTensors(BatchRows):
    """What holds plain tensors `[B, ...]`, and dictionaries of named ones.

    Attributes:
        keys, values, padding, rope_offset: tensors, or None where there are none yet.
        write_inputs, states: tensors by name.
        device: where the layer computes.
        budget: the most rows, one a token, that keys, values and write inputs ever have.
    """

    keys: Any
    values: Any
    padding: Tensor | None
    rope_offset: Tensor | None
    write_inputs: dict[str, Tensor]
    states: dict[str, Tensor]
    device: Any
    budget: int

    PLAIN = ("keys", "values", "padding", "rope_offset")
    NAMED = ("write_inputs", "states")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors held, `[B, ...]`, by name: `keys`, ..., `states.recurrent_state`."""
        tensors = {name: getattr(self, name) for name in self.PLAIN}
        for kind in self.NAMED:
            tensors |= {f"{kind}.{name}": x for name, x in getattr(self, kind).items()}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def set_tensor(self, name: str, tensor: Tensor) -> None:
        """Hold a tensor under a name as `tensors` gives it."""
        kind, _, rest = name.partition(".")
        if rest:
            getattr(self, kind)[rest] = tensor
        else:
            setattr(self, name, tensor)

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> None:
        """See `BatchRows.map_tensors`."""
        for name, tensor in self.tensors().items():
            self.set_tensor(name, change(tensor))

    def reserve(self, tokens: int | None = None) -> None:
        """Make rows for so many tokens in all, padding included; None makes all of the budget.

        Rows are at least doubled, so that a text is copied twice at most, in whatever chunks it
        comes. What holds their addresses, such as a CUDA graph, needs all of them first.
        """
        rows, whole = self.keys.shape[2], self.budget
        needed = whole if tokens is None else min(tokens, whole)
        if rows < needed:
            grown = min(whole, max(needed, 2 * rows))
            self.keys, self.values = (with_rows(x, grown) for x in (self.keys, self.values))
            self.write_inputs = {k: with_rows(x, grown) for k, x in self.write_inputs.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def offload(self) -> None:
        """Move everything held to the CPU."""
        self.map_tensors(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Bring everything held back to its device."""
        self.map_tensors(lambda x: x.to(self.device, non_blocking=True))
