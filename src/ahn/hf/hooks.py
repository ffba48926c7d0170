"""The forward pre-hooks that tell the attention function what it is not given natively."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from ahn.config import AHNConfig
from ahn.hf.attached_state import AttachedState
from ahn.hf.cache_argument import cache_argument, check_cache_type, claim_cache, wants_cache
from ahn.hf.inputs import packed_documents, row_padding
from ahn.layer.attention import NAME
from ahn.layer.cache import AHNCache
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.context import DecodePlacement, ForwardContext, LayerContext
from ahn.layer.modes import Mode, mode_named
from ahn.layer.ring import token_positions
from ahn.memory import Memory, PositionRouter

CONTEXT = "ahn_context"  # keyword under which a ForwardContext travels through the layers
PROMPT = "ahn_prompt"  # keyword that tells `GenerateStep` the prompt's length; nobody else looks

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class AHNLayer(nn.Module):
    """`decoder_layer.ahn`: holds the memory under the released name `fn`."""

    def __init__(self, fn: Memory) -> None:
        super().__init__()
        self.fn = fn


class AttentionHook:
    """Before a layer's `self_attn`: hand its memory, hidden states and cache to the attention."""

    def __init__(self, layer: nn.Module, index: int, is_last: bool) -> None:
        self.layer, self.index, self.is_last = layer, index, is_last

    def __call__(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        self._check_caller(attention, kwargs)
        forward: ForwardContext = kwargs.pop(CONTEXT)
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        memory: AHNLayer | None = getattr(self.layer, "ahn", None)
        router: PositionRouter | None = getattr(self.layer, "ahn_router", None)
        cache_layer = self._cache_layer(kwargs, forward, memory, hidden)
        context = LayerContext(
            forward=forward,
            memory=None if memory is None else memory.fn,
            router=router,
            hidden=hidden,
            position_embeddings=kwargs.get("position_embeddings"),
            cache=cache_layer,
            is_last=self.is_last,
        )
        return args, {**kwargs, "ahn": context}

    def _check_caller(self, attention: Any, kwargs: dict[str, Any]) -> None:
        if CONTEXT not in kwargs:
            raise RuntimeError(
                f"{type(attention).__name__}: expected to be called by the attached decoder"
            )
        if attention.config._attn_implementation != NAME:
            raise RuntimeError(
                f"attn_implementation: expected {NAME!r} on an attached model, got "
                f"{attention.config._attn_implementation!r} (use model.set_attn_implementation)"
            )

    def _cache_layer(
        self,
        kwargs: dict[str, Any],
        forward: ForwardContext,
        memory: AHNLayer | None,
        hidden: Tensor,
    ) -> AHNCacheLayer | None:
        """The cache of a layer with a memory, ready for its update; None elsewhere."""
        name, cache = cache_argument(kwargs)
        # A cache of full attention may have no layers yet: it makes them as they come.
        layers = () if cache is None else cache.layers
        layer = layers[self.index] if self.index < len(layers) else None
        if isinstance(layer, AHNCacheLayer):
            layer.expects_update = True
            if forward.padding is not None:
                layer.set_padding(forward.padding.to(hidden.device), forward.max_padding)
            return layer if memory is not None else None
        if forward.mode.is_bounded and memory is not None and layer is not None:
            raise TypeError(f"{name}: expected an AHNCache, got {type(cache).__name__}")
        return None


class ModelHook:
    """Before the model: refuse a wrong cache by the name that it was given under.

    transformers may rename the keyword, or drop one of two, before the decoder is called.
    """

    def __init__(self, state: AttachedState) -> None:
        self.state = state

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name, cache = cache_argument(kwargs)
        check_cache_type(name, cache, _mode(kwargs.get("ahn_mode"), self.state).is_bounded)


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
            kwargs = {**dict(zip(inspect.signature(decoder.forward).parameters, args)), **kwargs}
        context, position = self._settings(kwargs), kwargs.pop("ahn_position", None)
        if position is not None:
            context = _placed(kwargs, context, position)
            return (), {**kwargs, CONTEXT: context}
        inputs = kwargs.get("input_ids")
        batch, length = (kwargs["inputs_embeds"] if inputs is None else inputs).shape[:2]
        if length == 0:
            raise ValueError("input: expected at least one token, got an empty prompt")
        if context.mode.is_bounded:
            context = self._bounded(decoder, kwargs, context, batch, length)
        else:
            check_cache_type(*cache_argument(kwargs), is_bounded=False)
        return (), {**kwargs, CONTEXT: context}

    def _settings(self, kwargs: dict[str, Any]) -> ForwardContext:
        kwargs.pop(PROMPT, None)
        sizes = [kwargs.pop(name, None) for name in ("ahn_window", "ahn_sinks")]
        config = self.state.config
        if sizes != [None, None]:
            config = config.with_budget(*(x if x is None else index(x) for x in sizes))
        return ForwardContext(
            mode=_mode(kwargs.pop("ahn_mode", None), self.state),
            window=config.window,
            num_sinks=config.num_sinks,
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
            kwargs["use_cache"] = False  # else the decoder makes a cache that grows
        elif cache is None and wants_cache(decoder, kwargs):
            cache = kwargs[name] = AHNCache(decoder.config)
        seen = 0 if cache is None else claim_cache(name, cache, context)
        self._warn_beyond(decoder, seen + length)
        padding, largest = row_padding(mask, cache, seen, length)
        if mask is None and padding is not None and self.state.config.full_attention_layers:
            positions = token_positions(0, seen + length, padding, padding.device)
            kwargs["attention_mask"] = positions >= 0
        context = replace(context, padding=padding, max_padding=largest, segments=segments)
        if cache is not None and length == 1 and _can_decode(self.state.config, context, seen):
            return _decoding(kwargs, cache, context, seen)
        return context

    def _warn_beyond(self, decoder: Any, length: int) -> None:
        limit = getattr(decoder.config, "max_position_embeddings", None)
        if limit and length > limit and not self.state.warned:
            self.state.warned = True
            warnings.warn(
                f"{length} tokens are more than the base model's max_position_embeddings={limit}; "
                "its positions beyond that are untrained",
                stacklevel=2,
            )


def _can_decode(config: AHNConfig, context: ForwardContext, seen: int) -> bool:
    """Whether one new token may go through the ring in place: every row has begun, and bounded."""
    begun = 0 < seen >= context.max_padding and context.mode.decodes_in_place
    return begun and not config.full_attention_layers and not torch.is_grad_enabled()


def _decoding(
    kwargs: dict[str, Any], cache: AHNCache, context: ForwardContext, seen: int
) -> ForwardContext:
    """One new token a row, in its place in the cache; counts it."""
    device = cache.memory_layers[0].device
    limit = min(seen + 1, context.budget)
    decode = DecodePlacement.at(
        token_positions(seen, 1, context.padding, device)[:, 0],
        context.window,
        context.num_sinks,
        limit=limit,
        is_exact=seen + 1 - context.max_padding >= limit,
        in_order=context.padding is None and seen < context.budget,
    )
    _settle_inputs(kwargs, torch.full((1,), seen, device=device))
    cache.advance()
    return replace(context, decode=decode)


def _placed(kwargs: dict[str, Any], context: ForwardContext, position: Tensor) -> ForwardContext:
    """One new token a row at a position that only the device knows."""
    if not context.mode.decodes_in_place:
        raise ValueError(
            f"ahn_position: expected the memory or the window alone, got {context.mode}"
        )
    _settle_inputs(kwargs, position)
    decode = DecodePlacement.at(position, context.window, context.num_sinks, limit=context.budget)
    return replace(context, decode=decode)


def _settle_inputs(kwargs: dict[str, Any], position: Tensor) -> None:
    """Give the decoder what it would compute from the cache's counters: they have moved on."""
    if kwargs.get("position_ids") is None:
        kwargs["position_ids"] = position[:, None]
    kwargs["attention_mask"] = position.new_zeros(1, 1, 1, 1)  # passes untouched, nobody looks


def _mode(given: Mode | str | None, state: AttachedState) -> Mode:
    """The mode that a call asks for; without one, that of the attached model."""
    mode = given or state.mode
    return mode if isinstance(mode, Mode) else mode_named(mode)
