"""One layer of the bounded cache: sinks + ring of the window + write gates + recurrent state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ahn.config import AHNConfig
from ahn.layer.ring import gather_rows, put_rows, slot_of, spans
from ahn.ops.moving import wide

Pieces = tuple[Tensor, ...]
Pairs = list[tuple[Tensor, Tensor]]  # a buffer, and new tokens for it
Ranges = tuple[tuple[int, int], ...]
BATCHED = ("keys", "values", "gates", "recurrent_state", "padding")


class AHNCacheLayer(CacheLayerMixin):
    """One layer's memory of a text; its bytes are fixed by the first forward.

    A token at position p (real tokens of its row counted from 0) lives in slot p if it is a
    sink, else in slot S + (p - S) % W of `keys` and `values` `[B, G, S + W, K]`. So up to the
    budget slots are in order, and the slot a new token takes is that of the token it evicts.
    `gates` `[B, H, S + W, n]` has the same slots; `recurrent_state` is `[B, H, K, V]`,
    float32; where a pool takes the memory's place it is that, `[B, G, P, K + V]`.
    """

    is_sliding = True  # so that masks are sized by the full-attention layers, where there are any
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, config: AHNConfig) -> None:
        super().__init__()
        self.window, self.num_sinks = config.window, config.num_sinks
        self.reset()

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        self.keys: Any = None
        self.values: Any = None
        self.gates: Tensor | None = None
        self.recurrent_state: Tensor | None = None
        self.padding: Tensor | None = None  # [B]
        self.seen = 0  # tokens read by every row, padding included
        self.max_padding = 0
        self.mode: str | None = None
        self.is_initialized = self.expects_update = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate `[B, G, S + W, *]` for keys and values like these."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, groups, _, _ = key_states.shape
        slots = self.num_sinks + self.window
        self.keys, self.values = (
            x.new_zeros(batch, groups, slots, x.shape[-1]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by the model's own attention: the new tokens pass on, `store` or `put` keeps them.

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
        return key_states, value_states

    def set_padding(self, padding: Tensor | None, max_padding: int) -> None:
        """Number of left-padding tokens of each row, `[B]`, before the first token is read."""
        self.padding, self.max_padding = padding, max_padding

    def positions(self, first: int, length: int) -> Tensor:
        """Positions `[B or 1, length]` of the tokens from `first` on; padding has negative ones."""
        index = first + torch.arange(length, device=self.keys.device)[None]
        return index if self.padding is None else index - self.padding[:, None]

    def recent(self) -> tuple[Pieces, Pieces, Pieces | None]:
        """The last m <= W tokens in order: keys, values `[B, G, m, *]`, gates `[B, H, m, n]`.

        Each in pieces: views of the ring, that the next `store` overwrites, or copies where rows
        differ. Sinks and padding may be among them; neither is ever written into the state.
        """
        m = min(self.seen, self.window)
        buffers = (self.keys, self.values, self.gates)
        if self.padding is None:
            parts = spans(self.seen - m, m, self.window, self.num_sinks)
            taken = [x if x is None else tuple(x[:, :, s] for s in parts) for x in buffers]
        else:
            position = self.positions(self.seen - m, m).clamp(min=0)
            slots = slot_of(position, self.window, self.num_sinks)
            taken = [x if x is None else (gather_rows(x, slots),) for x in buffers]
        keys, values, gates = taken
        assert keys is not None and values is not None, "something has been stored"
        return keys, values, gates

    def at(self, slot: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Key, value `[B, G, 1, *]` and gates `[B, 1, H, n]` in the slot `[B or 1]` of each row."""
        slots = slot[:, None]
        keys, values = gather_rows(self.keys, slots), gather_rows(self.values, slots)
        gates = None if self.gates is None else gather_rows(self.gates, slots).transpose(1, 2)
        return keys, values, gates

    def put(self, slot: Tensor, keys: Tensor, values: Tensor, gates: Tensor | None) -> None:
        """Put one token of each row, shaped as `at` gives them, in its slot; counts nothing."""
        put_rows(self.keys, slot, keys)
        put_rows(self.values, slot, values)
        if gates is not None:
            gates = gates.transpose(1, 2)
            put_rows(self._prepare_gates(gates), slot, gates)

    def held(self, length: int) -> tuple[Tensor, Tensor]:
        """Views of the first `length` slots: all tokens in order while none has been evicted."""
        return self.keys[:, :, :length], self.values[:, :, :length]

    @torch.no_grad()
    def store(self, keys: Tensor, values: Tensor, gates: Tensor | None) -> None:
        """Put C new tokens where they live: keys, values `[B, G, C, *]`, gates `[B, C, H, n]`."""
        length = keys.shape[2]
        pairs = [(self.keys, keys), (self.values, values)]
        if gates is not None:
            gates = gates.transpose(1, 2)
            pairs.append((self._prepare_gates(gates), gates))
        sinks_end = min(length, max(0, self.num_sinks + self.max_padding - self.seen))
        window_start = max(sinks_end, length - self.window)
        kept = ((0, sinks_end), (window_start, length))
        if self.padding is None:
            self._put_spans(pairs, kept)
        else:
            self._put_chosen(pairs, kept)
        self.seen += length

    def _put_spans(self, pairs: Pairs, kept: Ranges) -> None:
        """Copy columns `kept` of new tokens `[B, *, C, *]` into buffers, slice by slice."""
        pairs = [(buffer, new) for buffer, new in (wide(*pair) for pair in pairs)]
        for first, last in kept:
            for slots in spans(self.seen + first, last - first, self.window, self.num_sinks):
                size = slots.stop - slots.start
                for buffer, new in pairs:
                    buffer[:, :, slots] = new[:, :, first : first + size]
                first += size

    def _put_chosen(self, pairs: Pairs, kept: Ranges) -> None:
        """The same where rows differ, except padding and what is evicted."""
        columns = torch.cat([torch.arange(*part, device=self.keys.device) for part in kept])
        positions = self.positions(self.seen, kept[-1][1])[:, columns]
        recent = positions > positions[:, -1:] - self.window
        chosen = (positions >= 0) & (recent | (positions < self.num_sinks))
        rows, places = chosen.nonzero(as_tuple=True)
        slots = slot_of(positions[rows, places], self.window, self.num_sinks)
        for buffer, new in pairs:
            buffer[rows, :, slots] = new[rows, :, columns[places]]

    def _prepare_gates(self, gates: Tensor) -> Tensor:
        """The buffer for gates like `[B, H, *, n]`."""
        if self.gates is None:
            shape = (*gates.shape[:2], self.keys.shape[2], gates.shape[3])
            self.gates = gates.new_zeros(shape)
        return self.gates

    @torch.no_grad()
    def set_state(self, state: Tensor | None, in_place: bool = False) -> None:
        """Keep the memory's state, cut off from the autograd graph that made it.

        Args:
            in_place: overwrite the one held, which then no backward may need.
        """
        if in_place and state is not None and self.recurrent_state is not None:
            self.recurrent_state.copy_(state)
        else:
            self.recurrent_state = None if state is None else state.detach()

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

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in the order of `beam_idx` `[B]`."""
        self._map_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self._map_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows `indices`."""
        self._map_rows(lambda x: x[indices.to(x.device)])

    def offload(self) -> None:
        """Move everything held to the CPU."""
        self._map_rows(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Bring everything held back to its device."""
        self._map_rows(lambda x: x.to(self.device, non_blocking=True))

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in BATCHED:
            if (tensor := getattr(self, name)) is not None:
                setattr(self, name, change(tensor))

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens.

        Raises ValueError once a token has been evicted: what is compressed cannot be undone.
        """
        self.check_crop(tokens_to_remove)
        self.seen = max(0, self.seen - abs(tokens_to_remove))

    def check_crop(self, tokens_to_remove: int) -> None:
        """Raise ValueError where `crop` would."""
        shortest = 0 if self.padding is None else int(self.padding.min())
        if tokens_to_remove and self.seen - shortest > self.num_sinks + self.window:
            raise ValueError(
                f"crop: expected at most {self.num_sinks + self.window} tokens, got {self.seen}: "
                "tokens compressed into the memory cannot be taken back"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        tensors = (getattr(self, name) for name in BATCHED)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
