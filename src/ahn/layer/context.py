"""What travels through a forward: a `ForwardContext` for all layers, a `LayerContext` for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.distance import Distance
from ahn.layer.ring import ring_index, token_positions
from ahn.memory import Memory, PositionRouter, Slots

if TYPE_CHECKING:
    from ahn.layer.modes import Mode


@dataclass(frozen=True)
class DecodePlacement:
    """Where one new token of every row goes: tensors, so that a captured graph can be replayed.

    A new token takes the row of the buffers of the one it evicts, see `AHNCacheLayer`.

    Attributes:
        position: `[B or 1]`, real tokens of a row before this one.
        ring_index: `[B or 1]`, of the new token and of the evicted one.
        filled: `[B or 1]`, leading rows that hold a token, the new one included.
        write_mask: `[B or 1, 1]` bool, whether a token is evicted that is no sink.
        limit: rows to look at, at least `filled`.
        is_exact: whether `filled` is known to be `limit` in every row.
        in_order: whether these rows are known to be all tokens, in order.
        is_counted: whether each layer's cache counts the token; else the caller does, once.
    """

    position: Tensor
    ring_index: Tensor
    filled: Tensor
    write_mask: Tensor
    limit: int
    is_exact: bool = False
    in_order: bool = False
    is_counted: bool = False

    @classmethod
    def at(
        cls, position: Tensor, window: int, num_sinks: int, limit: int, **known: bool
    ) -> DecodePlacement:
        """The place of tokens at `position`."""
        return cls(
            position=position,
            ring_index=ring_index(position, window, num_sinks),
            filled=(position + 1).clamp(max=num_sinks + window),
            write_mask=(position - window >= num_sinks)[:, None],
            limit=limit,
            **known,
        )

    def to_device(self, device: torch.device) -> DecodePlacement:
        """The same on a layer's device."""
        if self.position.device == device:
            return self
        names = ("position", "ring_index", "filled", "write_mask")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class ForwardContext:
    """What one forward of the decoder means for all its layers; made by the decoder's hook.

    Attributes:
        mode: how the layers with a memory look back.
        padding: `[B]`, left-padding tokens of each row; max_padding: the most of any row.
        segments: packed documents of each row, as (first, end) indices; None where none are packed.
        is_real: `[B, C]` bool, which new tokens are no padding; None where no recurrence need know.
        decodes: of one new token a row, by the window of a layer; None for a chunk.
        layer_windows: of each layer, where they differ; `window` is then their average.
        distance: how far back slots are read as they are; None is any distance.
        kernels: the choice that governs all ops, see `ahn.ops.backends`.
    """

    mode: Mode
    window: int
    num_sinks: int
    padding: Tensor | None = None
    max_padding: int = 0
    segments: tuple[tuple[tuple[int, int], ...], ...] | None = None
    is_real: Tensor | None = None
    decodes: Mapping[int, DecodePlacement] | None = None
    layer_windows: tuple[int, ...] | None = None
    distance: Distance | None = None
    kernels: str = "auto"

    @property
    def windows(self) -> set[int]:
        """The windows of all layers with a memory."""
        return {self.window} if self.layer_windows is None else {*filter(None, self.layer_windows)}

    @property
    def budget(self) -> int:
        """Tokens that a query sees exactly in every layer."""
        return min(self.windows) + self.num_sinks

    @property
    def decode(self) -> DecodePlacement | None:
        """Of one new token a row in a layer of this window; None for a chunk."""
        return None if self.decodes is None else self.decodes[self.window]

    def of_layer(self, index: int) -> ForwardContext:
        """What it means for the layer of that index: its own window."""
        if self.layer_windows is None:
            return self
        return replace(self, window=self.layer_windows[index], layer_windows=None)


@dataclass(frozen=True)
class LayerContext:
    """What the attention function needs beside q, k and v; made by the layer's hook.

    It is no module and has no `.to`: accelerate moves what looks like one to other devices.

    Attributes:
        memory: its cell, where it has one.
        keeps_own: whether it looks back in another way than at the whole text, in every mode.
        hidden: `[B, C, D]`, the layer's input after its first norm.
        position_embeddings: cosine and sine of the new tokens.
        is_last: whether no layer follows.
        slots: its exact slots, where it has some.
        is_bounded: whether it has a memory; else it looks back as the base does.
    """

    forward: ForwardContext
    memory: Memory | None
    router: PositionRouter | None
    hidden: Tensor
    position_embeddings: tuple[Tensor, Tensor] | None
    cache: AHNCacheLayer | None
    is_last: bool = False
    slots: Slots | None = None
    is_bounded: bool = False
    keeps_own: bool = False

    @property
    def seen(self) -> int:
        """Tokens read before this call, padding included."""
        return 0 if self.cache is None else self.cache.seen

    @property
    def states(self) -> Mapping[str, Tensor]:
        """What the memory holds of the text so far."""
        return {} if self.cache is None else self.cache.states

    def positions(self, first: int, length: int) -> Tensor:
        """Positions `[B or 1, length]` of the tokens from index `first` on."""
        return token_positions(first, length, self.forward.padding, self.hidden.device)

    def document(self, row: int, first: int, end: int) -> LayerContext:
        """The same call for one packed document of one row, on its own."""
        rope = self.position_embeddings
        if rope is not None:
            cos, sin = (x[row : row + 1] if len(x) > 1 else x for x in rope)
            rope = (cos[:, first:end], sin[:, first:end])
        return replace(
            self,
            forward=replace(self.forward, segments=None),
            hidden=self.hidden[row : row + 1, first:end],
            position_embeddings=rope,
        )
