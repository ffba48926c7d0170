"""What a decoder's config says of its layers: how each looks back, its heads and their size.

A memory takes the place of what grows: attention to the whole text. Layers that slide, attend
within chunks or recur are bounded already, and stay as they are. Where every layer slides over one
window, as in Mistral 7B, that window is what forgets, and the memory's takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ahn.config import AHNConfig

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
OWN_ATTENTION = frozenset({SLIDING, CHUNKED})  # bounded, with masks of their own
RECURRENT = frozenset({"linear_attention", "conv"})
NO_MIXER = frozenset({"moe", "mlp"})  # no token sees another
_OLD_NAMES = {"attention": FULL, "mamba": "linear_attention"}


@dataclass(frozen=True)
class AttentionSizes:
    """Of one layer: query heads, key-value heads, and the size of a head's keys and values."""

    heads: int
    groups: int
    head_dim: int


def layer_config(config: Any, layer: int) -> Any:
    """The values of a text model's config that hold for the layer of that index."""
    by_layer = getattr(config, "per_layer_config", None)  # where transformers knows of such values
    return config if by_layer is None else by_layer[layer]


def layer_types(config: Any) -> list[str]:
    """The type of each layer of a text model with this config, in transformers' words."""
    types = getattr(config, "layer_types", None)
    if types is None:
        slides = [window is not None for window in _windows(config)]
        types = [SLIDING if slide else FULL for slide in slides]
    return [_OLD_NAMES.get(name, name) for name in types]


def own_window(config: Any) -> int | None:
    """The window that all layers of a text model slide over; None where some or all do not."""
    return max(_windows(config)) if set(layer_types(config)) == {SLIDING} else None


def layer_values(config: Any, name: str) -> list[Any]:
    """A value of a text model's config in each layer; None where a layer has none."""
    layers = range(config.num_hidden_layers)
    return [getattr(layer_config(config, layer), name, None) for layer in layers]


def _windows(config: Any) -> list[Any]:
    return layer_values(config, "sliding_window")


def unbounded_layers(config: Any) -> list[int]:
    """Indices of the layers that a memory can bound; all where every layer slides."""
    chosen = FULL if own_window(config) is None else SLIDING
    return [index for index, name in enumerate(layer_types(config)) if name == chosen]


def memory_layers(config: Any, settings: AHNConfig) -> list[int]:
    """Indices of the layers that have a memory under these settings."""
    return [index for index in unbounded_layers(config) if settings.has_memory(index)]


def other_types(config: Any, settings: AHNConfig) -> frozenset[str]:
    """Types of the layers without a memory."""
    chosen = set(memory_layers(config, settings))
    return frozenset(x for index, x in enumerate(layer_types(config)) if index not in chosen)


def attention_sizes(config: Any, layer: int) -> AttentionSizes:
    """Heads of the attention in the layer of that index; in some families they differ by layer."""
    own = layer_config(config, layer)
    heads = own.num_attention_heads
    return AttentionSizes(
        heads=heads,
        groups=getattr(own, "num_key_value_heads", None) or heads,
        head_dim=getattr(own, "head_dim", None) or own.hidden_size // heads,
    )
