"""A decoder's layers in numbers, from its config: made on the meta device, so without weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from ahn.config import AHNConfig
from ahn.hf.declared import STATES, WRITE_INPUTS, declared_by
from ahn.io.keys import is_memory
from ahn.memory import StateSpec
from ahn.modeling import attach, auto_class
from ahn.shapes import (
    FULL,
    OWN_ATTENTION,
    RECURRENT,
    AttentionSizes,
    attention_sizes,
    layer_config,
    layer_types,
    memory_layers,
)

# Parts of a decoder layer that mix no tokens.
MLP = ("mlp", "feed_forward", "block_sparse_moe", "moe", "shared_mlp", "experts")


@dataclass(frozen=True)
class LayerNumbers:
    """What one layer costs.

    Attributes:
        sizes: heads of its attention.
        mixer, mlp: numbers of the base's matrices that a token is multiplied with.
        cell: those of the memory's.
        read: those that a token which reads the memory is multiplied with.
        state: operations that writing and reading a state take, of one token.
        waiting: bytes of what waits beside each token of sinks and window, by the bytes of a number
            of a key.
        states: likewise bytes of the states of a sequence.
        bound: tokens that the layer's own attention keeps, as its base has it; None: all.
        has_memory: whether it has one.
    """

    sizes: AttentionSizes
    mixer: int
    mlp: int
    cell: int
    read: int
    state: int
    waiting: tuple[StateSpec, ...]
    states: tuple[StateSpec, ...]
    bound: int | None
    has_memory: bool


@dataclass(frozen=True)
class Decoder:
    """A decoder with a memory, in numbers.

    Attributes:
        settings: of the memory.
        layers: of the decoder, in order.
        parameters, memory_parameters: of the base and of the memory; tied weights count once.
        matrices: numbers of the base's parameters that quantisation makes smaller.
        head: numbers of the output embeddings.
        widest: largest peak of numbers for one token of a chunk, see
            `_widest`.
        trained_length: tokens of the longest text that the base was trained on, as its config says.
    """

    settings: AHNConfig
    layers: tuple[LayerNumbers, ...]
    parameters: int
    memory_parameters: int
    matrices: int
    head: int
    widest: int
    trained_length: int | None

    @classmethod
    def of(cls, config: Any, settings: AHNConfig) -> Decoder:
        """By a transformers config.

        Raises ValueError where the model cannot have such a memory, or has layers that recur: what
        those hold is no function of the config alone.
        """
        text = config.get_text_config(decoder=True)
        if recurring := sorted(set(layer_types(text)) & RECURRENT):
            raise ValueError(f"plan: expected layers that attend, got {', '.join(recurring)}")
        with torch.device("meta"):
            model = auto_class(config).from_config(config, dtype=torch.bfloat16)
            attach(model, settings)
        named = dict(model.named_parameters())
        parameters = {name: x for name, x in named.items() if not is_memory(name)}
        layers: Any = model.get_decoder().layers
        return cls(
            settings=settings,
            layers=tuple(_layers(text, settings, layers)),
            parameters=sum(x.numel() for x in parameters.values()),
            memory_parameters=sum(x.numel() for name, x in named.items() if is_memory(name)),
            matrices=sum(_matrix_numbers(x) for x in layers),
            head=model.get_output_embeddings().weight.numel(),
            widest=_widest(text, layers),
            trained_length=getattr(text, "max_position_embeddings", None),
        )


def _layers(text: Any, settings: AHNConfig, layers: Any) -> Iterator[LayerNumbers]:
    bounded = set(memory_layers(text, settings))
    for index, (kind, layer) in enumerate(zip(layer_types(text), layers)):
        sizes, has_memory = attention_sizes(text, index), index in bounded
        declared = declared_by(layer)
        weights = list(_matrices(text, layer))
        yield LayerNumbers(
            sizes=sizes,
            mixer=sum(n for part, n in weights if part == "mixer"),
            mlp=sum(n for part, n in weights if part == "mlp"),
            cell=sum(n for part, n in weights if part == "cell"),
            read=sum(n for part, n in weights if part == "read"),
            # For every head three products of K x V: what stands at the key, what is put there, and
            # what the query finds.
            state=6 * sizes.heads * sizes.head_dim**2 if getattr(layer, "ahn", None) else 0,
            waiting=tuple(declared[WRITE_INPUTS].values()),
            states=tuple(declared[STATES].values()),
            bound=None if kind == FULL or has_memory else _own_bound(kind, text, index),
            has_memory=has_memory,
        )


def _own_bound(kind: str, text: Any, index: int) -> int | None:
    """Tokens that a layer without a memory keeps."""
    if kind not in OWN_ATTENTION:
        return 0  # no token sees another
    own = layer_config(text, index)
    window = getattr(own, "sliding_window", None) or getattr(own, "attention_chunk_size", None)
    return None if window is None else window - 1


def _matrices(text: Any, layer: nn.Module) -> Iterator[tuple[str, int]]:
    """Which part of a layer each matrix belongs to, and its numbers that one token meets."""
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 1
    chosen = getattr(text, "num_experts_per_tok", None) or 1
    for name, parameter in layer.named_parameters():
        count = parameter.numel()
        if is_memory(f".{name}"):
            if parameter.ndim > 1:
                yield ("read" if parameter.ndim == 3 else "cell"), count
        elif parameter.ndim > 1:
            part = "mlp" if name.split(".")[0] in MLP else "mixer"
            yield part, count * chosen // experts if parameter.ndim == 3 else count


def _matrix_numbers(layer: nn.Module) -> int:
    named = layer.named_parameters()
    return sum(x.numel() for name, x in named if x.ndim > 1 and not is_memory(f".{name}"))


def _widest(text: Any, layers: Any) -> int:
    """As `ahn.runtime.prefill_chunk.numbers_per_token`, where layers may differ."""
    inner = [
        max(parameter.shape)
        for layer in layers
        for name, parameter in layer.named_parameters()
        if name.split(".")[0] in MLP and parameter.ndim == 2
    ]
    sizes = [attention_sizes(text, index) for index in range(len(layers))]
    width = max(x.heads * x.head_dim for x in sizes)
    return 3 * text.hidden_size + max(3 * max(inner, default=0), 17 * width)


def held_bytes(specs: tuple[StateSpec, ...], number: int) -> int:
    """Bytes of tensors with these specs.

    Args:
        number: bytes of a number whose dtype is that of the keys.
    """
    return sum(prod(x.shape) * (x.dtype.itemsize if x.dtype else number) for x in specs)
