"""The bounded cache of a whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from ahn.config import AHNConfig
from ahn.layer.batched_tensors import BatchRows
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.other_layers import (
    crop_unsupported_reason,
    drop_tokens,
    join_layers,
    map_rows,
    tensors_of,
)
from ahn.layer.ring import with_rows
from ahn.shapes import attention_sizes, memory_layers


class AHNCache(BatchRows, Cache):
    """What an attached model holds of a text: pass it as `cache`.

    Before transformers 5.24 that keyword is `past_key_values`.

    A layer with a memory has an `AHNCacheLayer`, the others have what the base's own cache would
    give them: a sliding window, the state of a recurrence, or all tokens.

    Args:
        config: the attached model's config.

    Attributes:
        settings: those it was made for.
        owner: fingerprint of the model that has written it; None before the first token.

    Raises:
        ValueError: the config is that of a model without a memory.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        text_config = config.get_text_config(decoder=True)
        settings = getattr(config, "ahn_config", None) or getattr(text_config, "ahn_config", None)
        if settings is None:
            raise ValueError(
                f"AHNCache: expected the config of an attached model, got {type(config).__name__}"
            )
        ahn = AHNConfig.from_dict(settings)
        self.settings = ahn.to_dict() | {"num_hidden_layers": text_config.num_hidden_layers}
        self.ends_in_padding = False  # some rows do, so none can be read on
        self.owner: Any = None
        layers: list[Any] = DynamicCache(config=text_config).layers
        self.sizes = [attention_sizes(text_config, index) for index in range(len(layers))]
        for index in memory_layers(text_config, ahn):
            layers[index] = AHNCacheLayer(ahn, index)
        super().__init__(layers=layers)

    @property
    def memory_layers(self) -> list[AHNCacheLayer]:
        """The layers that have a memory (the others hold what the base's would)."""
        return [layer for layer in self.layers if isinstance(layer, AHNCacheLayer)]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held, of layers without a memory too."""
        layers = [tensors_of(x) for x in self._other_layers()] + [
            layer.tensors() for layer in self.memory_layers
        ]
        return sum(tensor.nbytes for tensors in layers for tensor in tensors.values())

    def _other_layers(self) -> list[Any]:
        return [layer for layer in self.layers if not isinstance(layer, AHNCacheLayer)]

    def reset(self) -> None:
        """Forget everything: another model may write it next."""
        super().reset()
        for layer in self._other_layers():
            drop_tokens(layer)
        self.ends_in_padding, self.owner = False, None

    def leave_inference_mode(self) -> None:
        """Copy what was made under `torch.inference_mode`, if that has ended: see the layer's."""
        for layer in self.memory_layers:
            layer.leave_inference_mode()

    def reserve(self) -> None:
        """Make all rows that the budget will ever need, for what holds their addresses."""
        for layer in self.memory_layers:
            layer.reserve()

    @property
    def reserve_bytes(self) -> int:
        """Bytes that `reserve` would add."""
        missing = 0
        for layer in self.memory_layers:
            buffers = (layer.keys, layer.values, *layer.write_inputs.values())
            rows = layer.budget - layer.keys.shape[2]
            missing += rows * sum(x[:, :, :1].nbytes for x in buffers)
        return missing

    def advance(self) -> None:
        """Count one more token, that every layer with a memory is given without counting it."""
        for layer in self.memory_layers:
            layer.seen += 1

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens of all layers, or of none: see `AHNCacheLayer.crop`.

        Raises ValueError where a layer without a memory cannot take them back either.
        """
        if not tokens_to_remove:
            return
        for layer in self.memory_layers:
            layer.check_crop(tokens_to_remove)
        for layer in self._other_layers():
            if reason := crop_unsupported_reason(layer):
                raise ValueError(f"crop: expected {reason}")
        super().crop(-abs(tokens_to_remove))

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor of every layer by what `change` makes of it."""
        for layer in self.memory_layers:
            layer.map_tensors(change)
        for layer in self._other_layers():
            map_rows(layer, change)

    @classmethod
    def join(cls, caches: Sequence[AHNCache]) -> AHNCache:
        """One batch of texts that were read apart, however long each is: a copy of all rows.

        Raises ValueError where there is nothing to join, or caches differ in more than their text.
        """
        if not caches or not all(cache.get_seq_length() for cache in caches):
            raise ValueError("join: expected caches that have read something, got an empty one")
        if any(cache.ends_in_padding for cache in caches):
            raise ValueError(
                "join: expected rows that can be read on, got some that end in padding"
            )
        kinds = [(cache.settings, cache.memory_layers[0].mode) for cache in caches]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(f"join: expected caches of one model and mode, got {kinds}")
        if any(cache.owner != caches[0].owner for cache in caches):
            raise ValueError("join: expected caches of one model, got those of several")
        result = copy.copy(caches[0])
        result.layers = [
            _joined(layers) if isinstance(layers[0], AHNCacheLayer) else join_layers(layers)
            for layers in zip(*(cache.layers for cache in caches))
        ]
        return result

    def fork(self) -> AHNCache:
        """An independent copy: reading on with it leaves this one untouched.

        Its tensors are cut off from the graph that made them, which cannot be copied.
        """
        return self._copied(lambda x: x)

    def row(self, index: int) -> AHNCache:
        """An independent copy of one row, without the padding that `join` gave it.

        Where some layers have no memory, the padding stays: they hold it too.
        """
        only = slice(index, index + 1)
        copied = self._copied(lambda x: x[only] if x.ndim and x.numel() else x)
        for layer in copied.memory_layers:
            layer.settle_padding(drop=not self._other_layers())
        return copied

    def _copied(self, change: Callable[[Tensor], Tensor]) -> AHNCache:
        tensors = {id(x): x for layer in self.layers for x in _tensors_in(vars(layer))}
        copies = {key: change(tensor).detach().clone() for key, tensor in tensors.items()}
        return copy.deepcopy(self, dict(copies))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in dictionaries and lists, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(each)


@torch.no_grad()
def _joined(layers: Sequence[AHNCacheLayer]) -> AHNCacheLayer:
    """A shorter text is one with padding on its left: a token's row depends on its position."""
    joined = copy.copy(layers[0])
    joined.seen = max(layer.seen for layer in layers)
    rows = max(layer.keys.shape[2] for layer in layers)
    joined.keys = torch.cat([with_rows(layer.keys, rows) for layer in layers])
    joined.values = torch.cat([with_rows(layer.values, rows) for layer in layers])
    inputs = [{k: with_rows(x, rows) for k, x in y.write_inputs.items()} for y in layers]
    batches = [len(layer.keys) for layer in layers]
    joined.write_inputs = _joined_by_name(inputs, batches)
    joined.states = _joined_by_name([layer.states for layer in layers], batches)
    missing = [joined.seen - layer.seen for layer in layers for _ in range(len(layer.keys))]
    joined.rope_offset = _joined_offset(layers)
    padding = torch.tensor(missing, device=joined.keys.device)
    padding += torch.cat([_padding(layer) for layer in layers])
    joined.max_padding = int(padding.max())
    joined.padding = padding if joined.max_padding else None
    return joined


def _joined_by_name(
    tensors: Sequence[Mapping[str, Tensor]], batches: Sequence[int]
) -> dict[str, Tensor]:
    """Named tensors of all layers, row after row; zeros for those that have none yet."""
    like = {name: x for named in tensors for name, x in named.items()}
    return {
        name: torch.cat(
            [
                named.get(name, x.new_zeros(batch, *x.shape[1:]))
                for named, batch in zip(tensors, batches)
            ]
        )
        for name, x in like.items()
    }


def _joined_offset(layers: Sequence[AHNCacheLayer]) -> Tensor | None:
    if all(layer.rope_offset is None for layer in layers):
        return None
    zeros = [layer.keys.new_zeros(len(layer.keys), dtype=torch.long) for layer in layers]
    offsets = [layer.rope_offset for layer in layers]
    return torch.cat([zero if x is None else x for zero, x in zip(zeros, offsets)])


def _padding(layer: AHNCacheLayer) -> Tensor:
    if layer.padding is not None:
        return layer.padding
    return torch.zeros(len(layer.keys), dtype=torch.long, device=layer.keys.device)
