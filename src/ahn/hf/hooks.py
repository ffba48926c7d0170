"""The two forward pre-hooks that tell the attention function what it is not given natively."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ahn.config import AHNConfig
from ahn.hf.inputs import packed_documents, row_padding
from ahn.layer.attention import NAME
from ahn.layer.cache import AHNCache
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.context import FULL, MEMORY, POOLED, DecodePlacement, ForwardContext, LayerContext
from ahn.memory import Memory, PositionRouter

CONTEXT = "ahn_context"  # keyword under which a ForwardContext travels through the decoder's layers
PROMPT = "ahn_prompt"  # keyword that tells `GenerateStep` the prompt's length; nobody else looks


class AHNLayer(nn.Module):
    """`decoder_layer.ahn`: holds the cell under the released name `fn`."""

    def __init__(self, fn: Memory) -> None:
        super().__init__()
        self.fn = fn


class AttentionHook:
    """Before a layer's `self_attn`: hand its memory, hidden states and cache to the attention."""

    def __init__(self, layer: nn.Module, index: int, is_last: bool) -> None:
        self.layer, self.index, self.is_last = layer, index, is_last

    def __call__(
        self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if CONTEXT not in kwargs:
            raise RuntimeError(
                f"{type(attention).__name__}: expected to be called by the attached decoder"
            )
        if attention.config._attn_implementation != NAME:
            raise RuntimeError(
                f"attn_implementation: expected {NAME!r} on an attached model, got "
                f"{attention.config._attn_implementation!r} (use model.set_attn_implementation)"
            )
        step = kwargs.pop(CONTEXT)
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        # A cache of full attention may have no layers yet: it makes them as they come.
        layers = () if cache is None else cache.layers
        layer_cache = layers[self.index] if self.index < len(layers) else None
        memory: AHNLayer | None = getattr(self.layer, "ahn", None)
        router: PositionRouter | None = getattr(self.layer, "ahn_router", None)
        if isinstance(layer_cache, AHNCacheLayer):
            layer_cache.expects_update = True
            if step.padding is not None:
                layer_cache.set_padding(step.padding.to(hidden.device), step.max_padding)
        elif step.mode != FULL and memory is not None and layer_cache is not None:
            raise TypeError(f"past_key_values: expected an AHNCache, got {type(cache).__name__}")
        call = LayerContext(
            step=step,
            memory=None if memory is None else memory.fn,
            router=router,
            hidden=hidden,
            rope=kwargs.get("position_embeddings"),
            cache=layer_cache if memory is not None else None,
            ends=self.is_last and step.keeps_alone and cache is not None and step.decoding is None,
        )
        return args, {**kwargs, "ahn": call}


class DecoderHook:
    """Before the decoder: settle once a forward what its layers share.

    Three keywords of a forward override the attached settings for that call, without a cache
    of other settings: `ahn_mode` (`full`, `window`, `memory` or one of `ahn.layer.context.POOLED`),
    `ahn_window`, `ahn_sinks`.
    A fourth, `ahn_position` `[B]`, says on the device where one new token of every row goes; the
    host's counters are then the caller's (`AHNCache.advance`), so the forward can be captured.
    A fifth, `ahn_keeps_alone`, ends the forward as `ahn.runtime.fill_cache.read` expects it.
    """

    def __init__(self, config: AHNConfig) -> None:
        self.config = config
        self.mode = MEMORY
        self.warned = False

    def __call__(
        self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            kwargs = {**dict(zip(inspect.signature(decoder.forward).parameters, args)), **kwargs}
        step, position = self._settings(kwargs), kwargs.pop("ahn_position", None)
        if position is not None:
            step = _placed(kwargs, step, position)
            return (), {**kwargs, CONTEXT: step}
        inputs = kwargs.get("input_ids")
        batch, length = (kwargs["inputs_embeds"] if inputs is None else inputs).shape[:2]
        if length == 0:
            raise ValueError("input: expected at least one token, got an empty prompt")
        if step.mode == FULL:
            _refuse_bounded_cache(kwargs.get("past_key_values"))
        else:
            step = self._bounded(decoder, kwargs, step, batch, length)
        return (), {**kwargs, CONTEXT: step}

    def _settings(self, kwargs: dict[str, Any]) -> ForwardContext:
        kwargs.pop(PROMPT, None)
        window, sinks = kwargs.pop("ahn_window", None), kwargs.pop("ahn_sinks", None)
        return ForwardContext(
            mode=kwargs.pop("ahn_mode", None) or self.mode,
            window=self.config.window if window is None else window,
            num_sinks=self.config.num_sinks if sinks is None else sinks,
            keeps_alone=kwargs.pop("ahn_keeps_alone", False),
        )

    def _bounded(
        self, decoder: Any, kwargs: dict[str, Any], step: ForwardContext, batch: int, length: int
    ) -> ForwardContext:
        """The cache, padding and packed documents of a forward that is not full attention."""
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        segments = None
        if cache is None and mask is None:
            segments = packed_documents(kwargs.get("position_ids"), batch)
        if cache is None and segments is None and _wants_cache(decoder, kwargs):
            cache = kwargs["past_key_values"] = AHNCache(decoder.config)
        if segments is not None:
            kwargs["use_cache"] = False  # else the decoder makes a cache that grows
        seen = 0 if cache is None else _claim(cache, step)
        self._warn_beyond(decoder, seen + length)
        padding, largest = row_padding(mask, cache, seen, length)
        if mask is None and padding is not None and self.config.full_attention_layers:
            index = torch.arange(seen + length, device=padding.device)
            kwargs["attention_mask"] = index >= padding[:, None]
        step = replace(step, padding=padding, max_padding=largest, segments=segments)
        if cache is not None and length == 1 and _can_decode(self.config, step, seen):
            return self._decoding(kwargs, cache, step, seen)
        return step

    def _decoding(
        self, kwargs: dict[str, Any], cache: AHNCache, step: ForwardContext, seen: int
    ) -> ForwardContext:
        """One new token a row, in its place in the cache; counts it."""
        index = torch.full((1,), seen, device=cache.memory_layers[0].device)
        position = index if step.padding is None else index - step.padding
        decoding = DecodePlacement.at(
            position,
            step.window,
            step.num_sinks,
            limit=min(seen + 1, step.budget),
            is_exact=seen + 1 - step.max_padding >= min(seen + 1, step.budget),
            in_order=step.padding is None and seen < step.budget,
        )
        _settle_inputs(kwargs, index)
        cache.advance()
        return replace(step, decoding=decoding)

    def _warn_beyond(self, decoder: Any, length: int) -> None:
        limit = getattr(decoder.config, "max_position_embeddings", None)
        if limit and length > limit and not self.warned:
            self.warned = True
            warnings.warn(
                f"{length} tokens are more than the base model's max_position_embeddings={limit}; "
                "its positions beyond that are untrained",
                stacklevel=2,
            )


def _can_decode(config: AHNConfig, step: ForwardContext, seen: int) -> bool:
    """Whether one new token may go through the cache's slots: every row has begun, and bounded."""
    begun = 0 < seen >= step.max_padding and step.mode not in POOLED
    return begun and not config.full_attention_layers and not torch.is_grad_enabled()


def _placed(kwargs: dict[str, Any], step: ForwardContext, position: Tensor) -> ForwardContext:
    """One new token a row at a position that only the device knows."""
    if step.mode in POOLED:
        raise ValueError(f"ahn_position: expected the memory or the window alone, got {step.mode}")
    _settle_inputs(kwargs, position)
    return replace(
        step, decoding=DecodePlacement.at(position, step.window, step.num_sinks, limit=step.budget)
    )


def _settle_inputs(kwargs: dict[str, Any], position: Tensor) -> None:
    """Give the decoder what it would compute from the cache's counters: they have moved on."""
    if kwargs.get("position_ids") is None:
        kwargs["position_ids"] = position[:, None]
    kwargs["attention_mask"] = position.new_zeros(1, 1, 1, 1)  # passes untouched, nobody looks


def _wants_cache(decoder: Any, kwargs: dict[str, Any]) -> bool:
    wanted = kwargs.get("use_cache")
    wanted = decoder.config.use_cache if wanted is None else wanted
    recomputing = decoder.training and getattr(decoder, "gradient_checkpointing", False)
    return bool(wanted) and not recomputing


def _refuse_bounded_cache(cache: Any) -> None:
    if isinstance(cache, AHNCache):
        raise TypeError("past_key_values: expected a cache of full attention, got an AHNCache")


def _claim(cache: Any, step: ForwardContext) -> int:
    """Tokens the cache has read; raises where it was made for other settings."""
    if not isinstance(cache, AHNCache):
        raise TypeError(f"past_key_values: expected an AHNCache, got {type(cache).__name__}")
    expected = (step.mode, step.window, step.num_sinks)
    for layer in cache.memory_layers:
        layer.mode = layer.mode or step.mode
        got = (layer.mode, layer.window, layer.num_sinks)
        if got != expected:
            raise ValueError(
                f"past_key_values: expected a cache of (mode, window, sinks) {expected}, got {got}"
            )
    return cache.memory_layers[0].seen
