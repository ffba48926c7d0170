"""What travels through a forward: a `ForwardContext` for all layers, a `LayerContext` for each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.ring import slot_of
from ahn.memory import Memory, PositionRouter
from ahn.ops.pooled_attention import POOLINGS
from ahn.ops.window_attention import SavedOutputs

FULL, WINDOW, MEMORY = "full", "window", "memory"  # what a layer's queries look at
POOLED = {f"compressive-{pooling}": pooling for pooling in POOLINGS}  # window and a pool


@dataclass(frozen=True)
class DecodePlacement:
    """Where one new token of every row goes: tensors, so that a captured graph can be replayed.

    A new token takes the slot of the one it evicts, see `AHNCacheLayer`.
    """

    position: Tensor  # [B or 1], real tokens of a row before this one
    slot: Tensor  # [B or 1], of the new token and of the evicted one
    filled: Tensor  # [B or 1], leading slots that hold a token, with the new one
    keep: Tensor  # [B or 1, 1] bool, whether the evicted token is written: there is one, no sink
    limit: int  # slots to look at, at least `filled`
    is_exact: bool = False  # whether `filled` is known to be `limit` in every row
    in_order: bool = False  # whether these slots are known to be all tokens, in order

    @classmethod
    def at(
        cls, position: Tensor, window: int, num_sinks: int, limit: int, **known: bool
    ) -> DecodePlacement:
        """The place of tokens at `position`."""
        return cls(
            position=position,
            slot=slot_of(position, window, num_sinks),
            filled=(position + 1).clamp(max=num_sinks + window),
            keep=(position - window >= num_sinks)[:, None],
            limit=limit,
            **known,
        )

    def on(self, device: torch.device) -> DecodePlacement:
        """The same on a layer's device."""
        if self.position.device == device:
            return self
        names = ("position", "slot", "filled", "keep")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass
class Prefix:
    """First tokens of a text, that a layer reads before the others: those are given alone then.

    Filled by a pass with full attention over all tokens, for one up to whose budget both are equal.

    Attributes:
        length: up to the budget, that all other tokens are beyond.
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


@dataclass(frozen=True)
class ForwardContext:
    """What one forward of the decoder means for all its layers; made by the decoder's hook."""

    mode: str
    window: int
    num_sinks: int
    padding: Tensor | None = None  # [B], left-padding tokens of each row
    max_padding: int = 0
    segments: tuple[tuple[tuple[int, int], ...], ...] | None = None  # packed documents of each row
    decoding: DecodePlacement | None = None  # of one new token a row
    keeps_alone: bool = False  # whether nothing is asked for but what the cache keeps
    kept: SavedOutputs | None = None  # of a layer that is computed again for its gradient
    prefix: Prefix | None = None  # of a layer; in mode `full` it is to be filled

    @property
    def budget(self) -> int:
        return self.window + self.num_sinks


@dataclass(frozen=True)
class LayerContext:
    """What the attention function needs beside q, k and v; made by the layer's hook.

    Not a module and without `.to`: accelerate moves what looks like one to other devices.
    """

    step: ForwardContext
    memory: Memory | None  # None in a full-attention layer
    router: PositionRouter | None
    hidden: Tensor  # [B, C, D], pre-normed
    rope: tuple[Tensor, Tensor] | None  # cos and sin of the new tokens
    cache: AHNCacheLayer | None
    ends: bool = False  # whether the forward ends once this layer's cache has what it keeps

    @property
    def seen(self) -> int:
        """Tokens read before this call."""
        if self.cache is None and self.step.prefix is not None:
            return self.step.prefix.length
        return 0 if self.cache is None else self.cache.seen

    def positions(self, first: int, length: int) -> Tensor:
        """Positions `[B or 1, length]` of the tokens from `first` on; padding has negative ones."""
        index = first + torch.arange(length, device=self.hidden.device)[None]
        padding = self.step.padding
        return index if padding is None else index - padding.to(index.device)[:, None]

    def part(self, row: int, first: int, last: int) -> LayerContext:
        """The same call for one document of one row, on its own."""
        rope = self.rope
        if rope is not None:
            cos, sin = (x[row : row + 1] if len(x) > 1 else x for x in rope)
            rope = (cos[:, first:last], sin[:, first:last])
        hidden = self.hidden[row : row + 1, first:last]
        return replace(self, step=replace(self.step, segments=None), hidden=hidden, rope=rope)


class AllKept(Exception):
    """Raised by the last layer of a forward of which only the cache is wanted: that is complete."""


class LazyMask:
    """The base model's own mask, built when a layer asks for it; shared by all layers."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    @cached_property
    def base(self) -> Any:
        """What the base's attention function takes as `attention_mask`."""
        return ALL_MASK_ATTENTION_FUNCTIONS[self.arguments["config"].ahn_backend](**self.arguments)
