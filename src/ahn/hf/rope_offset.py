"""How far rotary positions have run from the count of tokens, since an image takes fewer.

Models with rotary positions of time, height and width (Qwen-VL, GLM-4V) keep this distance of the
last text they read on a module. Here it belongs to the cache: texts may be read in turns, resumed
and joined.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ahn.layer.cache import AHNCache
from ahn.layer.cache_layer import AHNCacheLayer


def settle_rope(
    cache: AHNCache, kwargs: dict[str, Any], padding: Tensor | None, seen: int, length: int
) -> None:
    """Note the rotary positions of images, or give those of the text that follows what is read.

    Some decoders (Bamba) would count from zero in every chunk.

    Args:
        kwargs: of the decoder's call.
    """
    positions, layer = kwargs.get("position_ids"), cache.memory_layers[0]
    note_rope_offset(layer, positions, padding, seen, length)
    if positions is None and layer.rope_offset is not None:
        kwargs["position_ids"] = layer.rope_positions(length)
    elif positions is None and seen:
        ids = kwargs.get("input_ids")
        device = (kwargs["inputs_embeds"] if ids is None else ids).device
        kwargs["position_ids"] = torch.arange(seen, seen + length, device=device)[None]


def note_rope_offset(
    layer: AHNCacheLayer, positions: Any, padding: Tensor | None, seen: int, length: int
) -> None:
    """Note the offset after new tokens, if the decoder is given positions of images.

    Args:
        layer: the cache's first layer with a memory.
        positions: `position_ids` of the call: `[3, B, C]`, or `[4, B, C]` with those of text first.
        padding: of each row, `[B]`.
        seen: tokens read before, of every row; length: new ones.
    """
    if not isinstance(positions, Tensor) or positions.ndim != 3:
        return
    before = torch.full_like(positions[-1, :, 0], seen)  # tokens of each row, padding taken away
    if padding is not None:
        before = before - padding.to(before.device)
    last = positions[-3:].amax((0, 2))
    if layer.rope_offset is not None:
        last = torch.maximum(last, layer.rope_offset + before - 1)
    layer.rope_offset = last + 1 - (before + length)


def placed_positions(cache: AHNCache, position: Tensor) -> Tensor:
    """Rotary positions `[B or 1, 1]` of text tokens at `position` `[B or 1]`."""
    offset = cache.memory_layers[0].rope_offset
    return (position if offset is None else position + offset)[:, None]


def next_positions(model: Any, cache: AHNCache, kwargs: dict[str, Any]) -> Tensor | None:
    """Positions of a call's tokens after those in the cache, `[B, C]` or with images `[3, B, C]`.

    None for a model that counts its images' tokens one by one, as it does by itself.

    Args:
        kwargs: of the call of a composite model.
    """
    find = getattr(model.base_model, "get_rope_index", None)
    given = kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    if find is None or given is None or not cache.get_seq_length():
        return None
    positions = cache.memory_layers[0].rope_positions(given.shape[1])
    types = kwargs.get("mm_token_type_ids")
    types = None if types is None else types[:, -given.shape[1] :]
    if types is None or not types.any():
        return positions
    names = set(inspect.signature(find).parameters) - {"attention_mask"}
    known = {**kwargs, "mm_token_type_ids": types}
    options = {name: known[name] for name in names if known.get(name) is not None}
    return find(**options)[0] + positions[:, :1]
