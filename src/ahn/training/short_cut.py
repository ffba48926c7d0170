"""The student reads only what lies beyond the budget.

Up to the budget teacher and student are equal and nothing that is trained has a part in them. So
the teacher's layer leaves its keys, values and hidden states of the first tokens here, and the
student's layer takes them from here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ahn.layer.context import LayerContext
from ahn.layer.modes import FullAttention, MemoryAttention
from ahn.layer.write_read import ChunkTokens, evicted_tokens, merge
from ahn.memory import Evicted
from ahn.ops.window_attention import SavedOutputs, token_slice
from ahn.training.slots.soft import soft_attention


@dataclass
class Prefix:
    """First tokens of a text in one layer, that both streams have in common.

    Attributes:
        length: the budget, or 0 where the student reads all tokens itself.
        key, value: `[B, G, length, *]`; hidden: `[B, length, D]`, pre-normed; without gradient.
    """

    length: int
    key: Tensor | None = None
    value: Tensor | None = None
    hidden: Tensor | None = None

    def fill(self, key: Tensor, value: Tensor, hidden: Tensor) -> None:
        """Copies, so that nothing keeps the whole text alive."""
        self.key, self.value = (x[:, :, : self.length].clone() for x in (key, value))
        self.hidden = hidden[:, : self.length].clone()


class TeacherAttention(FullAttention):
    """Full attention, that leaves the layer's first tokens in a prefix."""

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix

    def __call__(self, base, query, key, value, context):
        """See `FullAttention`."""
        if self.prefix.length:
            self.prefix.fill(key, value, context.hidden)
        return super().__call__(base, query, key, value, context)


class StudentAttention(MemoryAttention):
    """The memory's attention, of the tokens behind a prefix.

    Args:
        prefix: as the teacher's layer has filled it.
        saved: where the window's attention is saved for the run that computes the layer again.
    """

    def __init__(self, prefix: Prefix, saved: SavedOutputs | None) -> None:
        self.prefix, self.saved = prefix, saved

    def __call__(self, base, query, key, value, context):
        """See `MemoryAttention`; tokens behind a prefix never fit into the budget."""
        if self.prefix.length:
            return self.attend_chunk(base, query, key, value, context), None
        return super().__call__(base, query, key, value, context)

    def attend_chunk(self, base, query, key, value, context):
        """See `MemoryAttention`; where slots are trained their choice passes gradients on."""
        if context.slots is None or not torch.is_grad_enabled():
            return super().attend_chunk(base, query, key, value, context)
        read = None
        if context.memory is not None:
            alone = replace(context, slots=None)
            evicted = self.gather(query, key, value, alone).evicted
            read = self.write_and_read(base.module, query, evicted, alone).read
        return merge(soft_attention(base, query, key, value, context, self.prefix), read)

    def gather(
        self, query: Tensor, key: Tensor, value: Tensor, context: LayerContext
    ) -> ChunkTokens:
        """See `MemoryAttention`; each token behind the prefix evicts one, and never a sink.

        In a layer with a longer window than the others' the first of them evict none.
        """
        prefix = self.prefix
        if not prefix.length:
            return super().gather(query, key, value, context)
        assert prefix.key is not None and prefix.value is not None
        num_sinks, length = context.forward.num_sinks, prefix.length + key.shape[2]
        number = max(0, length - num_sinks - context.forward.window)
        keys, values = (prefix.key, key), (prefix.value, value)
        beyond_keys, beyond_values = (token_slice(x, num_sinks, length) for x in (keys, values))
        cached = self._write_inputs(query, context)
        evicted = evicted_tokens(beyond_keys, beyond_values, cached, number, num_sinks, context)
        sinks = (prefix.key[:, :, :num_sinks], prefix.value[:, :, :num_sinks])
        return ChunkTokens(keys, values, 0, *sinks, evicted)

    def attend(self, base, query, chunk, written, context, **options: Any) -> Tensor:
        """See `MemoryAttention`."""
        return super().attend(base, query, chunk, written, context, saved=self.saved, **options)

    def _write_inputs(self, query: Tensor, context: LayerContext) -> dict[str, tuple[Tensor]]:
        """What the memory needs to write the prefix's tokens, by name `[B, h, length - S, n]`."""
        hidden = self.prefix.hidden
        assert hidden is not None
        nothing = query[:, :, :0]
        none = Evicted(nothing, nothing, None, context.positions(0, 0), None)
        hidden = hidden[:, context.forward.num_sinks :]
        inputs: dict[str, Tensor] = {}
        if context.memory is not None:
            inputs |= context.memory(hidden, nothing.transpose(1, 2), none, {}).write_inputs
        if context.slots is not None:
            inputs |= context.slots(hidden, none, {}).write_inputs
        return {name: (x.transpose(1, 2),) for name, x in inputs.items()}
