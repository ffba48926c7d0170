"""Exact slots: pairs of what left the window, chosen by a learned priority and kept as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from ahn.memory.contract import Evicted, MemoryOutput, States, StateSpec
from ahn.ops.layout import compute_dtype, without_autocast
from ahn.ops.slots import HeadRows, SlotBuffers, Stored, choose, loaded, quantised_shapes, stored
from ahn.ops.window_attention import ExactRows, SlotRows

WIDTH = 64  # of the net's hidden layer
RATE = 0.1  # at first: a fresh net scores all tokens alike, so the newest stay
SCORES = "slot_scores"  # what waits beside a token until it leaves the window
PRIORITY, PLACE = "slot_priority", "slot_place"  # names of states, as those of KEYS and VALUES
KEYS, VALUES, SCALES = "slot_keys", "slot_values", "_scales"


class Float32Linear(nn.Linear):
    """A linear map in float32, whatever it is stored in; in float64 where that is float64."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(self.weight)
        return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class Slots(nn.Module):
    """A layer's exact slots: the tokens of highest priority among those that left the window.

    A token i has the score s = net(h) for each key head, from the layer's input h, when it is new.
    Its priority is s + rate * i / 1000, made once, when it leaves; i counts the real tokens of a
    row. So value fades with age alike for all, and the order of two tokens never changes. Sinks and
    padding have none. Keys and values join the softmax over sinks and window. Parameters are those
    of `net` and `rate`, beside a layer's cell under the name `ahn_slots`.

    Args:
        hidden_size: width D of the hidden states.
        sizes: slots of each key head, G numbers; a layer's tensors hold them head after head.
        head_dim: size of keys and values, K = V.
        bits: 16 keeps the numbers as they are, 8 and 4 as codes, see `ahn.ops.slots`.
    """

    def __init__(
        self, hidden_size: int, sizes: tuple[int, ...], head_dim: int, *, bits: int = 16
    ) -> None:
        super().__init__()
        self.sizes, self.head_dim, self.bits = sizes, head_dim, bits
        self.rows = HeadRows(sizes)
        ends = (Float32Linear(hidden_size, WIDTH), Float32Linear(WIDTH, len(sizes)))
        self.net = nn.Sequential(ends[0], nn.SiLU(), ends[1])
        self.rate = nn.Parameter(torch.full((len(sizes),), RATE))

    @staticmethod
    def specs_of(sizes: tuple[int, ...], head_dim: int, bits: int) -> dict[str, StateSpec]:
        """The tensors held of each sequence, by name; a place is a position + 1, 0 is empty."""
        rows = sum(sizes)
        specs = {PRIORITY: StateSpec((rows,)), PLACE: StateSpec((rows,), torch.int32)}
        for name in (KEYS, VALUES):
            if bits == 16:
                specs[name] = StateSpec((rows, head_dim), dtype=None)
                continue
            codes, scales = quantised_shapes(head_dim, bits)
            specs[name] = StateSpec((rows, codes), torch.uint8)
            specs[name + SCALES] = StateSpec((rows, scales), torch.float16)
        return specs

    def state_specs(self) -> dict[str, StateSpec]:
        """`specs_of` these slots."""
        return self.specs_of(self.sizes, self.head_dim, self.bits)

    def write_input_specs(self) -> dict[str, StateSpec]:
        """A token's score for each key head."""
        return {SCORES: StateSpec((len(self.sizes), 1), dtype=None)}

    def forward(
        self,
        hidden: Tensor,
        evicted: Evicted,
        states: States,
        in_place: bool = False,
        kernels: str = "auto",
    ) -> MemoryOutput:
        """Let E evicted tokens arrive; the last E of C new tokens see what stands then.

        Args:
            hidden: `[B, C, D]`, the new tokens' input of the layer, after its first norm.
            states: by name, among others; the slots' are missing before the first arrival.
            in_place: E is 1, and the states are overwritten.
            kernels: which implementation chooses, see `ahn.ops.backends`.

        Returns:
            No `read`; `exact_rows`; the new tokens' scores `[B, C, G, 1]` as `write_inputs`.
        """
        scores = self.scores(hidden).mT
        inputs = {SCORES: scores[..., None]}
        number = evicted.key.shape[2]
        if not number:
            return MemoryOutput(None, {}, inputs)
        if evicted.write_inputs is not None:
            scores = torch.cat([evicted.write_inputs[SCORES][..., 0], scores], 1)
        priority = self.priorities(scores[:, :number].mT, evicted.position)
        if evicted.write_mask is not None:
            priority = priority.masked_fill(~evicted.write_mask[:, None], -torch.inf)
        place = (evicted.position + 1).int()
        own = {name: states[name] for name in self.state_specs() if name in states}
        if in_place:
            states, rows = self._insert(evicted, priority, place, own)
            return MemoryOutput(None, states, inputs, rows)
        kept, chosen = self._choose(evicted, priority, place, own, kernels)
        return MemoryOutput(None, kept, inputs, chosen)

    @without_autocast
    def scores(self, hidden: Tensor) -> Tensor:
        """`[B, G, T]` of tokens `[B, T, D]`, in float32 (float64 beside a float64 base)."""
        return self.net(hidden).mT

    def priorities(self, scores: Tensor, position: Tensor) -> Tensor:
        """float32 `[B, G, T]` of scores `[B, G, T]` at positions `[B or 1, T]`."""
        rate = self.rate.to(scores.dtype)[:, None]
        return (scores + rate * position[:, None].to(scores.dtype) / 1000).float()

    def init_states(self, like: Tensor) -> dict[str, Tensor]:
        """Empty states `[B, ...]` by name, for keys `[B, ...]`."""
        return {
            name: like.new_zeros((len(like), *spec.shape), dtype=spec.dtype or like.dtype)
            for name, spec in self.state_specs().items()
        }

    def _choose(
        self,
        evicted: Evicted,
        priority: Tensor,
        place: Tensor,
        states: dict[str, Tensor],
        kernels: str,
    ) -> tuple[dict[str, Tensor], SlotRows]:
        """A chunk: the states afterwards, and what each of its readers sees."""
        held = self.rows.most if states else 0
        states = states or self.init_states(evicted.key)
        arriving = {
            PRIORITY: priority, PLACE: place[:, None].expand_as(priority), **self._stored(evicted)
        }  # fmt: skip
        old = {name: self.rows.padded(states[name]) for name in arriving}
        sizes = self._sizes(priority.device)
        choice = choose(old[PRIORITY], old[PLACE], priority, sizes, kernels=kernels)
        candidates = {name: torch.cat([old[name], new], 2) for name, new in arriving.items()}
        kept = {name: _gathered(x, choice.kept) for name, x in candidates.items()}
        kept[PLACE] = kept[PLACE].masked_fill(~choice.filled, 0)
        key, value = (
            loaded(self._parts(name, candidates), self.bits, evicted.key.dtype)
            for name in (KEYS, VALUES)
        )
        position = candidates[PLACE] - 1
        kept = {name: self.rows.flat(x) for name, x in kept.items()}
        return kept, SlotRows(key, value, choice, priority.shape[-1], held, position)

    def _insert(
        self, evicted: Evicted, priority: Tensor, place: Tensor, states: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], ExactRows]:
        """One token a row, in place."""
        states = states or self.init_states(evicted.key)
        buffers = self.held_in(states)
        buffers.insert(evicted.key, evicted.value, priority[..., 0], place)
        return states, ExactRows.of_slots(buffers, evicted.key.dtype)

    def held_in(self, states: Mapping[str, Tensor]) -> SlotBuffers:
        """Its states as the ops of one new token take them: the same tensors."""
        key, value = (self._parts(name, states) for name in (KEYS, VALUES))
        return SlotBuffers(states[PRIORITY], states[PLACE], key, value, self.rows, self.bits)

    def _parts(self, name: str, states: Mapping[str, Tensor]) -> Stored:
        """The tensors that hold keys or values."""
        return tuple(states[x] for x in (name, name + SCALES) if x in states)

    def _stored(self, evicted: Evicted) -> dict[str, Tensor]:
        """Keys and values as the states hold them, by name."""
        tensors: dict[str, Tensor] = {}
        for name, x in ((KEYS, evicted.key), (VALUES, evicted.value)):
            tensors |= dict(zip((name, name + SCALES), stored(x, self.bits)))
        return tensors

    def _sizes(self, device: torch.device) -> Tensor | None:
        """Slots of each head, `[G]`; None where all have as many.

        Filled on the device: a copy from the host could not be captured in a graph.
        """
        if len(set(self.sizes)) == 1:
            return None
        return torch.cat([torch.full((1,), size, device=device) for size in self.sizes])

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise in place: scores of zero, so that fresh slots are a longer window."""
        first, last = (x for x in self.net if isinstance(x, Float32Linear))
        init.normal_(first.weight, std=0.02)
        for zero in (first.bias, last.weight, last.bias):
            init.zeros_(zero)
        init.constant_(self.rate, RATE)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """`x[b, g, index[b, g]]` of `[B, G, N, ...]`, from an index `[B, G, n]`."""
    if x.ndim == 3:
        return x.gather(2, index)
    return x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[-1]))
