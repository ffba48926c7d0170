"""The bounded cache of a whole model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from ahn.config import AHNConfig
from ahn.layer.cache_layer import AHNCacheLayer


class AHNCache(Cache):
    """What an attached model holds of a text: pass it as `cache`.

    Before transformers 5.24 that keyword is `past_key_values`.

    Each layer chooses: one with a memory has an `AHNCacheLayer`, the others have the layer that
    the base's own cache would give them.

    Args:
        config: the attached model's config.

    Raises:
        ValueError: the config is that of a model without a memory.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        text_config = config.get_text_config(decoder=True)
        settings = getattr(text_config, "ahn_config", None)
        if settings is None:
            raise ValueError(
                f"AHNCache: expected the config of an attached model, got {type(config).__name__}"
            )
        ahn = AHNConfig.from_dict(settings)
        self.settings = ahn.to_dict() | {"num_hidden_layers": text_config.num_hidden_layers}
        layers: list[Any] = DynamicCache(config=text_config).layers
        super().__init__(
            layers=[
                AHNCacheLayer(ahn) if ahn.has_memory(index) else layer
                for index, layer in enumerate(layers)
            ]
        )

    @property
    def memory_layers(self) -> list[AHNCacheLayer]:
        """The layers that have a memory (the others hold what the base's would)."""
        return [layer for layer in self.layers if isinstance(layer, AHNCacheLayer)]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held, of layers without a memory too."""
        return sum(_nbytes(layer) for layer in self.layers)

    def advance(self) -> None:
        """Count one more token, that every layer is given without counting it."""
        for layer in self.memory_layers:
            layer.seen += 1

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens of all layers, or of none: see `AHNCacheLayer.crop`."""
        for layer in self.memory_layers:
            layer.check_crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    @classmethod
    def join(cls, caches: Sequence[AHNCache]) -> AHNCache:
        """One batch of texts that were read apart, however long each is: a copy of all rows.

        Raises ValueError where there is nothing to join, or caches differ in more than their text.
        """
        if not caches or not all(cache.get_seq_length() for cache in caches):
            raise ValueError("join: expected caches that have read something, got an empty one")
        kinds = [(cache.settings, cache.memory_layers[0].mode) for cache in caches]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(f"join: expected caches of one model and mode, got {kinds}")
        if len(caches[0].memory_layers) < len(caches[0].layers):
            raise ValueError("join: expected a memory in every layer, got layers with all tokens")
        joined = copy.copy(caches[0])
        joined.layers = [_joined(layers) for layers in zip(*(c.memory_layers for c in caches))]
        return joined

    def fork(self) -> AHNCache:
        """An independent copy: reading on with it leaves this one untouched."""
        return copy.deepcopy(self)


def _nbytes(layer: Any) -> int:
    if isinstance(layer, AHNCacheLayer):
        return layer.nbytes
    return sum(x.nbytes for x in (layer.keys, layer.values) if x is not None)


@torch.no_grad()
def _joined(layers: Sequence[AHNCacheLayer]) -> AHNCacheLayer:
    """A shorter text is one with padding on its left: a token's row depends on its position."""
    joined = copy.copy(layers[0])
    joined.seen = max(layer.seen for layer in layers)
    joined.keys = torch.cat([layer.keys for layer in layers])
    joined.values = torch.cat([layer.values for layer in layers])
    joined.write_inputs = _joined_by_name(layers, "write_inputs")
    joined.states = _joined_by_name(layers, "states")
    missing = [joined.seen - layer.seen for layer in layers for _ in range(len(layer.keys))]
    padding = torch.tensor(missing, device=joined.keys.device)
    padding += torch.cat([_padding(layer) for layer in layers])
    joined.max_padding = int(padding.max())
    joined.padding = padding if joined.max_padding else None
    return joined


def _joined_by_name(layers: Sequence[AHNCacheLayer], kind: str) -> dict[str, Tensor]:
    """All layers' tensors of a kind, row after row; zeros for those that have none yet."""
    tensors: list[dict[str, Tensor]] = [getattr(layer, kind) for layer in layers]
    like = {name: x for named in tensors for name, x in named.items()}
    return {
        name: torch.cat(
            [
                named.get(name, x.new_zeros(len(layer.keys), *x.shape[1:]))
                for named, layer in zip(tensors, layers)
            ]
        )
        for name, x in like.items()
    }


def _padding(layer: AHNCacheLayer) -> Tensor:
    if layer.padding is not None:
        return layer.padding
    return torch.zeros(len(layer.keys), dtype=torch.long, device=layer.keys.device)
