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


def attended_pairs(length: int, settings: AHNConfig | None) -> int:
    """Pairs of a query and a key it sees in a text of `length`; None is full attention."""
    if settings is None or length <= settings.budget:
        return length * (length + 1) // 2
    budget = settings.budget
    return budget * (budget + 1) // 2 + (length - budget) * budget


def prefill_flops(shape: Shape, length: int, settings: AHNConfig | None) -> int:
    """Operations to prefill a text, with the logits of its last token."""
    scores = 4 * shape.heads * shape.head_dim * attended_pairs(length, settings)
    products = 2 * shape.layer_weights * length
    total = shape.layers * (scores + products) + 2 * shape.hidden * shape.vocabulary
    if settings is not None:
        evicted = max(0, length - settings.budget)
        total += shape.layers * 6 * evicted * shape.heads * shape.head_dim**2
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
    shape: Shape, length: int, settings: AHNConfig | None, memory: Any, number: int = 2
) -> int:
    """Bytes of one sequence's cache after `length` tokens.

    With a memory the cache is as large from the first token on.

    Args:
        settings: of the memory; None is full attention.
        memory: class of the memory, that says what it holds (`state_specs` and `num_gates` of
            `ahn.memory.Memory`); None is a window without one.
        number: bytes of one number of a key or value.
    """
    pair = 2 * shape.groups * shape.head_dim * number
    if settings is None:
        return shape.layers * pair * length
    gates, states = 0, 0
    if memory is not None:
        gates = shape.heads * memory.num_gates * number
        specs = memory.state_specs(shape.heads, shape.groups, shape.head_dim).values()
        states = sum(prod(x.shape) * (x.dtype.itemsize if x.dtype else number) for x in specs)
    return shape.layers * (settings.budget * (pair + gates) + states)


def decode_bytes(
    shape: Shape, length: int, settings: AHNConfig | None, batch: int = 1, number: int = 2
) -> int:
    """Bytes that a decoding step moves: the weights, and the keys, values and state of each row."""
    seen = length if settings is None else min(length, settings.budget)
    pair = 2 * shape.groups * shape.head_dim * number
    state = 0 if settings is None else 2 * shape.heads * shape.head_dim**2 * STATE_BYTES
    return shape.weights_read * number + batch * shape.layers * (seen * pair + state)
