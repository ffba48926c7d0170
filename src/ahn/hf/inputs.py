"""What a forward's mask and positions say: padding on the left, documents packed into rows."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ahn.layer.base_attention import LazyMask
from ahn.layer.cache import AHNCache
from ahn.layer.context import ForwardContext

ENCODED = "mm_encoder_outputs"  # keyword of what `generate` has encoded before the first forward
# Beginnings of the keywords under which models take what is not text.
MORE_THAN_TEXT = ("pixel_", "image_", "video_", "input_features", "audio_", ENCODED)


def trained_positions(config: Any) -> int | None:
    """How many positions a base was trained on, or made for by a RoPE that scales them.

    A scaled RoPE, such as YaRN's, reaches its factor times as far as before it was scaled.
    """
    limit = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or {}
    kinds = [x for x in scaling.values() if isinstance(x, dict)] or [scaling]  # one a kind of layer
    if limit is None:
        return None
    reached = (
        int((x.get("factor") or 1) * (x.get("original_max_position_embeddings") or limit))
        for x in kinds
    )
    return max(limit, *reached)


def rows_and_tokens(kwargs: dict[str, Any]) -> tuple[int, int]:
    """Rows and new tokens of a forward; ValueError where there are no tokens."""
    ids = kwargs.get("input_ids")
    batch, length = (kwargs["inputs_embeds"] if ids is None else ids).shape[:2]
    if length == 0:
        raise ValueError("input: expected at least one token, got an empty prompt")
    return batch, length


def by_name(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a forward, for its positional arguments too."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args)), **kwargs}


def row_padding(
    mask: Any, cache: AHNCache | None, seen: int, length: int
) -> tuple[Tensor | None, int]:
    """Left-padding tokens of each row `[B]`, and the most of any row.

    The cache knows them once every row has begun: decoding then looks at no mask. Padding on the
    right changes no real token, so it passes at a text's beginning, and a new cache notes that it
    cannot be read on; elsewhere: ValueError.
    """
    known, largest = None, 0
    if cache is not None and seen:
        layer = cache.memory_layers[0]
        known, largest = layer.padding, layer.max_padding
    begun = seen > largest
    if mask is None or (begun and length == 1):
        return known, largest
    real = _check_mask(mask, seen + length)[:, -length:]
    padding = left_padding(real, known, seen, right_allowed=not seen)
    if cache is not None and not seen:
        cache.ends_in_padding = bool((~real[:, -1] & (padding < length)).any())
    largest = int(padding.max())
    return (padding, largest) if largest else (None, 0)


def left_padding(
    real: Tensor, known: Tensor | None, seen: int, right_allowed: bool = False
) -> Tensor:
    """Left padding of each row `[B]` after `seen` tokens and new ones, `real` `[B, C]` bool.

    Raises ValueError where padding follows a real token.
    """
    known = torch.zeros_like(real[:, 0], dtype=torch.long) if known is None else known
    known = known.to(real.device)
    begun = known < seen
    left = (~real).cumprod(1).bool() & ~begun[:, None]
    allowed = left | real
    if right_allowed:
        allowed |= (~real).flip(1).cumprod(1).bool().flip(1)
    if not allowed.all():
        raise ValueError("attention_mask: expected left padding, got padding after real tokens")
    return known + left.sum(1)


def check_rows_end_in_tokens(mask: Tensor) -> None:
    """Raise ValueError where a row of a prompt, `[B, T]`, ends in padding: it cannot go on."""
    if not mask[:, -1].all():
        raise ValueError("attention_mask: expected left padding, got a row that ends in padding")


def text_mask(mask: Any, is_exact: bool) -> Any:
    """The mask `[B, T]`, or None, below those that a composite model has made for its decoder.

    Args:
        is_exact: whether all that is read so far is seen exactly, so that the base's mask is used.

    Raises ValueError where an image's tokens see each other, as in Gemma 3, and it is not.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if not isinstance(mask, LazyMask):
        return mask
    if not is_exact and mask.sees_ahead:
        raise ValueError(
            "attention_mask: expected images within window and sinks, read before what follows "
            "them, got one beyond whose tokens see each other"
        )
    return mask.arguments["attention_mask"]


def is_exact(cache: AHNCache | None, context: ForwardContext, length: int) -> bool:
    """Whether a text of this length is seen exactly, by the base's own attention."""
    layer = None if cache is None else cache.memory_layers[0]
    in_order = layer is None or not layer.seen or layer.padding is None
    return in_order and length <= min(context.windows) + context.num_sinks


def has_images(kwargs: dict[str, Any]) -> bool:
    """Whether a call is given more than text: images, videos or sound, raw or encoded."""
    return any(
        name.startswith(MORE_THAN_TEXT) and value is not None and not _is_empty(value)
        for name, value in kwargs.items()
    )


def _is_empty(value: Any) -> bool:
    return isinstance(value, dict) and not value


def _check_mask(mask: Any, length: int) -> Tensor:
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        kind = f"{mask.ndim} dimensions" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask: expected [batch, length], got {kind}")
    if mask.shape[1] != length:
        raise ValueError(f"attention_mask: expected {length} columns, got {mask.shape[1]}")
    return mask.bool()


def packed_documents(
    positions: Tensor | None, batch: int
) -> tuple[tuple[tuple[int, int], ...], ...] | None:
    """Documents of packed rows, where `position_ids` start again; None where nothing is packed."""
    if positions is not None and positions.ndim == 3 and len(positions) == 4:
        positions = positions[0]  # of text; the others are those of images
    if positions is None or positions.ndim != 2:
        return None
    starts = (positions.diff(dim=1) != 1).expand(batch, -1).cpu()
    if not starts.any():
        return None
    rows = []
    for row in starts:
        cuts = [0, *(row.nonzero().flatten() + 1).tolist(), positions.shape[1]]
        rows.append(tuple(pairwise(cuts)))
    return tuple(rows)
