"""What of a text a state holds exactly: sinks, window, and the tokens in slots."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ahn.memory.slots import PLACE
from ahn.session.state import State


@dataclass(frozen=True)
class Held:
    """Positions in the text that was read, from 0 on.

    Attributes:
        sinks: the first so many.
        window: of the tokens from the first position up to the second, the layer with the longest
            window sees each.
        slots: of how many layers and key heads a slot holds the position.
        heads: layers and key heads that have slots.
    """

    sinks: int
    window: tuple[int, int]
    slots: dict[int, int]
    heads: int


def held(state: State) -> Held:
    """What a state holds exactly."""
    if state.cache is None:
        return Held(0, (0, 0), {}, 0)
    layers, end = state.cache.memory_layers, state.tokens
    sinks = min(end, layers[0].num_sinks)
    window = max(layer.window for layer in layers)
    slots: Counter[int] = Counter()
    heads = 0
    for layer in layers:
        if (place := layer.states.get(PLACE)) is not None:
            heads += layer.keys.shape[1]
            slots.update((place[place > 0] - 1).tolist())
    return Held(sinks, (max(sinks, end - window), end), dict(slots), heads)


def full_attention_nbytes(state: State) -> int:
    """Bytes that the same tokens would take if every layer with a memory kept all of them."""
    if state.cache is None:
        return 0
    layers = state.cache.memory_layers
    ours = sum(x.nbytes for layer in layers for x in layer.tensors().values())
    pairs = sum(x[0, :, 0].nbytes for layer in layers for x in (layer.keys, layer.values))
    return state.nbytes - ours + pairs * state.tokens
