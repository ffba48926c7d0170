"""One layer of the bounded cache: sinks, the ring of the window, what waits there, and states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ahn.config import AHNConfig
from ahn.layer.batched_tensors import BatchedTensors
from ahn.layer.ring import (
    Pairs,
    gather_rows,
    put_rows,
    ring_index,
    ring_slices,
    store_by_row,
    store_in_order,
    token_positions,
    with_rows,
)

Views = tuple[Tensor, ...]


class AHNCacheLayer(BatchedTensors, CacheLayerMixin):
    """What one layer holds of a text; its bytes are fixed once a token has left the window.

    Before, it grows. A token at position p (real tokens of its row counted from 0) lives in row p
    of `keys` and `values` `[B, G, S + W, *]` if it is a sink, else in row S + (p - S) % W. So up to
    the budget the rows are in order, and a new token takes the row of the token it evicts.

    Attributes:
        write_inputs: by name `[B, h, S + W, n]`, what the memory needs to write a token once it
            leaves the window; it has the same rows.
        states: by name `[B, ...]`, what the memory holds, see `Memory.state_specs`.
        padding: `[B]`, left-padding tokens of each row; None is none.
        rope_offset: `[B]`, of the first layer alone: what its next token's rotary position is
            above its position, see `ahn.hf.rope_offset`; None is nothing.
        seen: tokens read by every row, padding included.
        mode: name of the mode that has filled it.

    Args:
        index: of the layer, whose window may be its own.
    """

    is_sliding = False  # masks of layers that slide by themselves are not sized by this one
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, config: AHNConfig, index: int = 0) -> None:
        super().__init__()
        self.window, self.num_sinks = config.window_of(index), config.num_sinks
        self.budget = self.num_sinks + self.window
        self.reset()

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        self.keys: Any = None
        self.values: Any = None
        self.write_inputs: dict[str, Tensor] = {}
        self.states: dict[str, Tensor] = {}
        self.padding: Tensor | None = None
        self.rope_offset: Tensor | None = None
        self.seen = 0
        self.max_padding = 0
        self.mode: str | None = None
        self.is_initialized = self.expects_update = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Hold keys and values like these from now on; `reserve` makes their rows."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (torch.zeros_like(x[:, :, :0]) for x in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's own attention: new tokens pass on; `append` or `put` stores them.

        Raises TypeError where no memory is attached: attention would see the chunk alone.
        """
        if not self.expects_update:
            raise TypeError("AHNCache: expected a model with a memory attached, got one without")
        self.expects_update = False
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        elif key_states.shape[0] != self.keys.shape[0]:
            raise ValueError(
                f"AHNCache: expected a batch of {self.keys.shape[0]}, got {key_states.shape[0]}"
            )
        if self.keys.shape[2] < self.budget:  # first: torch.compile would guard what is counted
            self.reserve(self.seen + key_states.shape[2])
        return key_states, value_states

    def leave_inference_mode(self) -> None:
        """Copy tensors made under `torch.inference_mode`, into which nobody may write outside."""
        if not torch.is_inference_mode_enabled():
            self.map_tensors(lambda x: x.clone() if x.is_inference() else x)

    def set_padding(self, padding: Tensor | None, max_padding: int) -> None:
        """Number of left-padding tokens of each row, `[B]`, before the first token is read."""
        self.padding, self.max_padding = padding, max_padding

    def settle_padding(self, drop: bool) -> None:
        """Count the padding of a layer that has one row anew.

        Args:
            drop: forget it, as if the row had been read alone.
        """
        padding = 0 if self.padding is None else int(self.padding[0])
        if drop:
            self.seen, padding = self.seen - padding, 0
        self.set_padding(self.padding if padding else None, padding)

    def positions(self, first: int, length: int) -> Tensor:
        """Positions `[B or 1, length]` of the tokens from index `first` on."""
        return token_positions(first, length, self.padding, self.keys.device)

    def rope_positions(self, length: int) -> Tensor:
        """Rotary positions `[B or 1, length]` of the next tokens, where these are text."""
        positions = self.positions(self.seen, length).clamp(min=0)
        return positions if self.rope_offset is None else positions + self.rope_offset[:, None]

    def first_tokens(self, length: int) -> tuple[Tensor, Tensor]:
        """Views of the first `length` rows: all tokens in order while none has been evicted."""
        return self.keys[:, :, :length], self.values[:, :, :length]

    def window_tokens(self) -> tuple[Views, Views, dict[str, Views] | None]:
        """The last m <= W tokens in order: keys, values `[B, G, m, *]`, and their write inputs.

        Each as views of the ring, that the next `append` overwrites, or copied where rows differ.
        Sinks and padding may be among them; neither is ever written into a state.
        """
        m, buffers = min(self.seen, self.window), self._token_buffers()
        if self.padding is None:
            slices = ring_slices(self.seen - m, m, self.window, self.num_sinks)
            views: list[Views] = [tuple(x[:, :, rows] for rows in slices) for x in buffers]
        else:
            position = self.positions(self.seen - m, m).clamp(min=0)
            index = ring_index(position, self.window, self.num_sinks)
            views = [(gather_rows(x, index),) for x in buffers]
        keys, values, *rest = views
        return keys, values, dict(zip(self.write_inputs, rest)) if rest else None

    def _token_buffers(self) -> list[Tensor]:
        return [self.keys, self.values, *self.write_inputs.values()]

    def token_at(self, index: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor] | None]:
        """Key, value `[B, G, 1, *]` and write inputs `[B, 1, h, n]` in row `index` `[B or 1]`."""
        key, value, *rest = (gather_rows(x, index[:, None]) for x in self._token_buffers())
        inputs = {name: x.transpose(1, 2) for name, x in zip(self.write_inputs, rest)}
        return key, value, inputs or None

    def put(
        self,
        index: Tensor,
        key: Tensor,
        value: Tensor,
        write_inputs: Mapping[str, Tensor] | None,
    ) -> None:
        """Put one token of each row, shaped as `token_at` gives it, in row `index`."""
        for buffer, token in self._pairs(key, value, write_inputs):
            put_rows(buffer, index, token)

    @torch.no_grad()
    def append(
        self, keys: Tensor, values: Tensor, write_inputs: Mapping[str, Tensor] | None
    ) -> None:
        """Put C new tokens where they live: `[B, G, C, *]`, write inputs `[B, C, h, n]`."""
        length, pairs = keys.shape[2], self._pairs(keys, values, write_inputs)
        sinks_end = min(length, max(0, self.num_sinks + self.max_padding - self.seen))
        window_start = max(sinks_end, length - self.window)
        stored = ((0, sinks_end), (window_start, length))
        if self.padding is None:
            store_in_order(pairs, stored, self.seen, self.window, self.num_sinks)
        else:
            positions = self.positions(self.seen, length)
            store_by_row(pairs, stored, positions, self.window, self.num_sinks)
        self.seen += length

    def _pairs(
        self, keys: Tensor, values: Tensor, write_inputs: Mapping[str, Tensor] | None
    ) -> Pairs:
        pairs = [(self.keys, keys), (self.values, values)]
        for name, tensor in (write_inputs or {}).items():
            tensor = tensor.transpose(1, 2)
            if name not in self.write_inputs:
                self.write_inputs[name] = with_rows(tensor[:, :, :0], self.keys.shape[2])
            buffer = self.write_inputs[name]
            pairs.append((buffer, tensor.to(buffer.dtype)))  # begun under autocast, or without
        return pairs

    @torch.no_grad()
    def set_states(self, states: Mapping[str, Tensor], in_place: bool = False) -> None:
        """Hold what the memory holds from now on, cut off from the graph that made it.

        Args:
            in_place: overwrite the tensors held, which then no backward pass may need.
        """
        for name, state in states.items():
            if in_place and name in self.states:
                self.states[name].copy_(state)
            else:
                self.states[name] = state.detach()

    def get_seq_length(self) -> int:
        """Tokens read so far, padding included."""
        return self.seen

    def get_max_length(self) -> int:
        """-1: any length."""
        return -1

    get_max_cache_shape = get_max_length  # the name before transformers 5.18

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Sizes of the base model's mask, used while nothing has been evicted.

        Early versions of transformers 5 pass the new tokens' positions instead of their number.
        """
        length = len(query_length) if isinstance(query_length, Tensor) else query_length
        return self.seen + length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens.

        Raises ValueError once a token has been evicted: what is compressed cannot be undone.
        """
        self.check_crop(tokens_to_remove)
        self.seen = max(0, self.seen - abs(tokens_to_remove))

    def check_crop(self, tokens_to_remove: int) -> None:
        """Raise ValueError where `crop` would."""
        shortest = 0 if self.padding is None else int(self.padding.min())
        if tokens_to_remove and self.seen - shortest > self.budget:
            raise ValueError(
                f"crop: expected at most {self.budget} tokens, got {self.seen}: "
                "tokens compressed into the memory cannot be taken back"
            )
