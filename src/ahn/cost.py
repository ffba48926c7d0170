"""Floating-point operations and bytes in closed form, from a config alone.

Multiply and add count as two operations. Only what grows with the model or the text is counted:
matrix products, attention scores and values, the state; neither norms nor activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from ahn.config import AHNConfig

STATE_BYTES = 4  # of a number in the recurrent state, float32


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that its cost depends on."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    groups: int  # key-value heads
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a transformers config."""
        text = config.get_text_config(decoder=True)
        heads = text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=heads,
            groups=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of a layer with a gated MLP."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.groups)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def weights_read(self) -> int:
        """Weights used for one token: all layers and the head (of the embedding only one row)."""
        return self.layers * self.layer_weights + self.hidden * self.vocabulary


def attended_pairs(length: int, settings: AHNConfig | None, layer: int = 0) -> int:
    """Pairs of a query and a key of sinks and window that it sees in a text of `length`.

    Args:
        settings: None is full attention.
        layer: whose window it is, where they differ.
    """
    if settings is None:
        return bounded_pairs(length, length)
    return bounded_pairs(length, settings.window_of(layer) + settings.num_sinks)


def slot_pairs(shape: Shape, length: int, settings: AHNConfig, layer: int) -> int:
    """Pairs of a query and a slot that it sees, of all query heads of a layer."""
    evicted = max(0, length - settings.window_of(layer) - settings.num_sinks)
    sizes = settings.slots_of(layer, shape.groups)
    return shape.heads // shape.groups * sum(bounded_pairs(evicted, size) for size in sizes)


def bounded_pairs(length: int, most: int) -> int:
    """Query-key pairs of causal attention where a query sees at most `most` keys."""
    first = min(length, most)
    return first * (first + 1) // 2 + (length - first) * most


def prefill_flops(shape: Shape, length: int, settings: AHNConfig | None) -> int:
    """Operations to prefill a text, with the logits of its last token."""
    products = shape.layers * 2 * shape.layer_weights * length
    total = products + 2 * shape.hidden * shape.vocabulary
    for layer in range(shape.layers):
        pairs = shape.heads * attended_pairs(length, settings, layer)
        if settings is not None:
            pairs += slot_pairs(shape, length, settings, layer)
            if settings.memory is not None:
                evicted = max(0, length - settings.window_of(layer) - settings.num_sinks)
                total += 6 * evicted * shape.heads * shape.head_dim**2
        total += 4 * shape.head_dim * pairs
    return total


def train_flops(
    shape: Shape, length: int, settings: AHNConfig, counted: int, checkpointing: bool = True
) -> int:
    """Operations of a distillation step on a text: what `ahn.training` computes on a GPU, no more.

    The teacher's layers run once, and the student's once on the tokens beyond the budget. With
    checkpointing the student's layers run again, except their attention, whose output is saved, and
    the last matrix product of each, whose output is not needed. The backward pass computes only
    gradients of inputs, since the base is frozen. The head runs three times on the `counted` tokens
    of the losses: for the teacher, the student and the gradient.
    """
    width, beyond = shape.heads * shape.head_dim, max(0, length - settings.budget)
    products, last = 2 * shape.layer_weights, 2 * shape.hidden * shape.intermediate
    teacher = products * length + 4 * width * attended_pairs(length, None)
    near, state = 4 * width * settings.budget, 6 * width * shape.head_dim
    # Backwards: twice what has two inputs.
    student = products + near + state + products + 2 * (near + state)
    if checkpointing:
        student += products - last + state
    head = 2 * shape.hidden * shape.vocabulary * counted
    return shape.layers * (teacher + beyond * student) + 3 * head


def cache_bytes(
    shape: Shape,
    length: int,
    settings: AHNConfig | None,
    memory: Any,
    number: int = 2,
    slots: Any = None,
) -> int:
    """Bytes of one sequence's cache after `length` tokens.

    With a memory these are the bytes of a full window, however short the text is.

    Args:
        settings: of the memory; None is full attention.
        memory: class of the cell, that says what it holds (`state_specs` and `num_gates` of
            `ahn.memory.Memory`); None is a window without one.
        number: bytes of one number of a key or value.
        slots: `ahn.memory.Slots`, where the settings have some and they are to be counted.
    """
    pair = 2 * shape.groups * shape.head_dim * number
    if settings is None:
        return shape.layers * pair * length
    waiting, states = 0, 0
    if memory is not None:
        waiting = shape.heads * memory.num_gates * number
        specs = memory.state_specs(shape.heads, shape.groups, shape.head_dim)
        states = _held(specs, number)
    total = shape.layers * states
    for layer in range(shape.layers):
        own = 0 if slots is None else slot_bytes(shape, settings, layer, slots, number)
        scores = shape.groups * STATE_BYTES if own else 0
        budget = settings.window_of(layer) + settings.num_sinks
        total += budget * (pair + waiting + scores) + own
    return total


def slot_bytes(shape: Shape, settings: AHNConfig, layer: int, slots: Any, number: int = 2) -> int:
    """Bytes of one layer's slots of one sequence; arguments as those of `cache_bytes`."""
    sizes = settings.slots_of(layer, shape.groups)
    if not any(sizes):
        return 0
    return _held(slots.specs_of(sizes, shape.head_dim, settings.slot_bits), number)


def _held(specs: Any, number: int) -> int:
    """Bytes of the tensors that a memory holds of a sequence, by their specs."""
    return sum(prod(x.shape) * (x.dtype.itemsize if x.dtype else number) for x in specs.values())


def decode_bytes(
    shape: Shape,
    length: int,
    settings: AHNConfig | None,
    batch: int = 1,
    number: int = 2,
    slots: Any = None,
) -> int:
    """Bytes that a decoding step moves: the weights, and the keys, values and state of each row.

    Arguments as those of `cache_bytes`.
    """
    pair, moved = 2 * shape.groups * shape.head_dim * number, 0
    for layer in range(shape.layers):
        seen = length
        if settings is not None:
            seen = min(length, settings.window_of(layer) + settings.num_sinks)
            if settings.memory is not None:
                moved += 2 * shape.heads * shape.head_dim**2 * STATE_BYTES
            if slots is not None:
                moved += slot_bytes(shape, settings, layer, slots, number)
        moved += seen * pair
    return shape.weights_read * number + batch * moved
