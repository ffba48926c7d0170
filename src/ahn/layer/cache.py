"""The bounded cache of a whole model."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

from ahn.config import AHNConfig
from ahn.layer.cache_layer import BATCHED, AHNCacheLayer


class AHNCache(Cache):
    """What an attached model remembers of a text: pass it as `past_key_values`.

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
        super().__init__(
            layers=[
                DynamicLayer() if index in ahn.full_attention_layers else AHNCacheLayer(ahn)
                for index in range(text_config.num_hidden_layers)
            ]
        )

    @property
    def memory_layers(self) -> list[AHNCacheLayer]:
        """The layers that have a memory (the others keep full attention and grow)."""
        return [layer for layer in self.layers if isinstance(layer, AHNCacheLayer)]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held, of full-attention layers too."""
        growing = [x for x in self.layers if isinstance(x, DynamicLayer)]
        exact = [x for layer in growing for x in (layer.keys, layer.values) if x is not None]
        return sum(x.nbytes for x in exact) + sum(layer.nbytes for layer in self.memory_layers)

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


@torch.no_grad()
def _joined(layers: Sequence[AHNCacheLayer]) -> AHNCacheLayer:
    """A shorter text is one with padding on its left: a token's slot depends on its position."""
    joined = copy.copy(layers[0])
    joined.seen = max(layer.seen for layer in layers)
    for name in BATCHED:
        setattr(joined, name, _rows(layers, name))
    missing = [joined.seen - layer.seen for layer in layers for _ in range(len(layer.keys))]
    padding = torch.tensor(missing, device=joined.keys.device)
    padding = padding if joined.padding is None else padding + joined.padding
    joined.max_padding = int(padding.max())
    joined.padding = padding if joined.max_padding else None
    return joined


def _rows(layers: Sequence[AHNCacheLayer], name: str) -> Tensor | None:
    """The rows of all layers' tensors of that name; zeros for those who have none yet."""
    tensors = [getattr(layer, name) for layer in layers]
    like = next((x for x in tensors if x is not None), None)
    if like is None:
        return None
    sizes = [len(layer.keys) for layer in layers]
    return torch.cat(
        [like.new_zeros(n, *like.shape[1:]) if x is None else x for x, n in zip(tensors, sizes)]
    )
