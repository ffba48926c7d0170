"""The decoder's forward pre-hook: what one forward means for all its layers."""

from __future__ import annotations

import warnings
from dataclasses import replace
from operator import index
from typing import Any

import torch
from torch import Tensor
from transformers import __version__, masking_utils

from ahn.hf.attached_state import AttachedState
from ahn.hf.attention_weights import check_attention_weights
from ahn.hf.cache_argument import (
    cache_argument,
    check_cache_type,
    claim_cache,
    under_known_name,
    wants_cache,
)
from ahn.hf.hooks import CONTEXT, PROMPT, Arguments, mode_of
from ahn.hf.inputs import (
    by_name,
    is_exact,
    packed_documents,
    row_padding,
    rows_and_tokens,
    text_mask,
    trained_positions,
)
from ahn.hf.rope_offset import placed_positions, settle_rope
from ahn.layer.base_attention import LazyMask
from ahn.layer.cache import AHNCache
from ahn.layer.context import DecodePlacement, ForwardContext
from ahn.layer.ring import token_positions
from ahn.shapes import CHUNKED

# Whether transformers lets each packed document begin with a chunk of its own.
CHUNKS_OF_DOCUMENTS = hasattr(masking_utils, "packed_sequence_compatibility_function")


class DecoderHook:
    """Before the decoder: settle once a forward what its layers share.

    Three keywords of a forward override the attached settings for that call: `ahn_mode` (a
    `Mode`, or the name of one in `ahn.layer.modes.MODES`), `ahn_window` and `ahn_sinks`. A cache
    that is passed along must have been made for the same settings.
    A fourth, `ahn_position` `[B]`, says on the device where one new token of every row goes; the
    host's counters are then the caller's (`AHNCache.advance`), so the forward can be captured.
    """

    def __init__(self, state: AttachedState) -> None:
        self.state = state

    def __call__(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        if args:
            kwargs = by_name(decoder, args, kwargs)
        context, position = self._settings(kwargs), kwargs.pop("ahn_position", None)
        if position is not None:
            context = _placed(kwargs, context, position)
            return (), under_known_name({**kwargs, CONTEXT: context})
        batch, length = rows_and_tokens(kwargs)
        if context.mode.is_bounded:
            context = self._bounded(decoder, kwargs, context, batch, length)
        else:
            check_cache_type(*cache_argument(kwargs), is_bounded=False)
            check_attention_weights(decoder, kwargs, context, 0, length)
        if isinstance(mask := kwargs.get("attention_mask"), LazyMask):
            kwargs["attention_mask"] = mask.for_decoder
        return (), under_known_name({**kwargs, CONTEXT: context})

    def _settings(self, kwargs: dict[str, Any]) -> ForwardContext:
        kwargs.pop(PROMPT, None)
        sizes = [kwargs.pop(name, None) for name in ("ahn_window", "ahn_sinks")]
        config = self.state.config
        if sizes != [None, None]:
            config = config.with_budget(*(x if x is None else index(x) for x in sizes))
        return ForwardContext(
            mode=mode_of(kwargs.pop("ahn_mode", None), self.state),
            window=config.window,
            num_sinks=config.num_sinks,
            layer_windows=config.windows,
            distance=self.state.distance,
            kernels=self.state.kernels,
        )

    def _bounded(
        self, decoder: Any, kwargs: dict[str, Any], context: ForwardContext, batch: int, length: int
    ) -> ForwardContext:
        """The cache, padding and packed documents of a forward that is not full attention."""
        name, cache = cache_argument(kwargs)
        mask, segments = kwargs.get("attention_mask"), None
        if cache is None and mask is None:
            segments = packed_documents(kwargs.get("position_ids"), batch)
        if segments is not None:
            self._check_documents()
            kwargs["use_cache"] = False  # else the decoder makes a cache that grows
        elif cache is None and wants_cache(decoder, kwargs):
            cache = kwargs[name] = AHNCache(decoder.config)
        seen = 0 if cache is None else claim_cache(name, cache, context, decoder, self.state)
        self._warn_beyond(decoder, seen + length)
        mask = text_mask(mask, is_exact=is_exact(cache, context, seen + length))
        padding, largest = row_padding(mask, cache, seen, length)
        if mask is None and padding is not None and self.state.other_types:
            positions = token_positions(0, seen + length, padding, padding.device)
            mask = kwargs["attention_mask"] = positions >= 0
        is_real = None
        if self.state.recurs and padding is not None and seen < largest:
            is_real = token_positions(seen, length, padding, padding.device) >= 0
        context = replace(
            context, padding=padding, max_padding=largest, segments=segments, is_real=is_real
        )
        check_attention_weights(decoder, kwargs, context, seen, length)
        if cache is not None:
            settle_rope(cache, kwargs, padding, seen, length)
        if cache is not None and length == 1 and _can_decode(context, seen):
            context, position = _decoding(cache, context, seen)
            _settle_inputs(kwargs, position, keeps_mask=self.state.needs_mask)
        return context

    def _check_documents(self) -> None:
        if self.state.recurs:
            raise ValueError(
                "position_ids: expected one document in each row, got packed documents, which the "
                f"model's recurrent layers would join ({', '.join(sorted(self.state.other_types))})"
            )
        if CHUNKED in self.state.other_types and not CHUNKS_OF_DOCUMENTS:
            raise ValueError(
                "position_ids: expected one document in each row, got packed documents, whose "
                f"chunks transformers {__version__} counts from the beginning of the row"
            )

    def _warn_beyond(self, decoder: Any, length: int) -> None:
        limit = trained_positions(decoder.config)
        if limit and length > limit and not self.state.warned:
            self.state.warned = True
            warnings.warn(
                f"{length} tokens are more than the base model's max_position_embeddings={limit} "
                "(what its RoPE scales counted); its positions beyond that are untrained",
                stacklevel=2,
            )


def _can_decode(context: ForwardContext, seen: int) -> bool:
    """Whether one new token may go through the ring in place: every row has begun, and bounded."""
    begun = 0 < seen >= context.max_padding and context.mode.decodes_in_place
    return begun and not torch.is_grad_enabled()


def _decoding(cache: AHNCache, context: ForwardContext, seen: int) -> tuple[ForwardContext, Tensor]:
    """One new token a row in its place in the cache, and its index `[1]`."""
    device = cache.memory_layers[0].device
    position = token_positions(seen, 1, context.padding, device)[:, 0]
    decodes = {}
    for window in context.windows:
        budget = window + context.num_sinks
        limit = min(seen + 1, budget)
        decodes[window] = DecodePlacement.at(
            position,
            window,
            context.num_sinks,
            limit=limit,
            is_exact=seen + 1 - context.max_padding >= limit,
            in_order=context.padding is None and seen < budget,
            is_counted=True,
        )
    return replace(context, decodes=decodes), torch.full((1,), seen, device=device)


def _placed(kwargs: dict[str, Any], context: ForwardContext, position: Tensor) -> ForwardContext:
    """One new token a row at a position that only the device knows."""
    if not context.mode.decodes_in_place:
        raise ValueError(
            f"ahn_position: expected the memory or the window alone, got {context.mode}"
        )
    _settle_inputs(kwargs, position)
    sinks = context.num_sinks
    decodes = {w: DecodePlacement.at(position, w, sinks, limit=w + sinks) for w in context.windows}
    return replace(context, decodes=decodes)


def _settle_inputs(kwargs: dict[str, Any], position: Tensor, keeps_mask: bool = False) -> None:
    """Give the decoder what it would compute itself, at a cost or from counters on the host.

    Args:
        keeps_mask: whether a layer looks at the mask; else none is made.
    """
    if kwargs.get("position_ids") is None:
        kwargs["position_ids"] = placed_positions(cache_argument(kwargs)[1], position)
    if not keeps_mask:
        kwargs["attention_mask"] = position.new_zeros(1, 1, 1, 1)  # passes untouched
