"""The keyword under which a cache travels into a model and through its layers.

transformers 5.24 renamed it from `past_key_values` to `cache`. Its models still take the old name
and warn. No other file knows which of the two names the installed version uses.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from ahn.layer.cache import AHNCache
from ahn.layer.context import ForwardContext

OLD_NAME, NEW_NAME = "past_key_values", "cache"
IS_RENAMED = NEW_NAME in {field.name for field in fields(BaseModelOutputWithPast)}
CACHE = NEW_NAME if IS_RENAMED else OLD_NAME  # as transformers' own modules and outputs call it


def cache_argument(kwargs: dict[str, Any]) -> tuple[str, Any]:
    """Name and value of the cache among a call's keywords; `(CACHE, None)` where there is none.

    Raises TypeError where both names are given, or the new one before transformers 5.24, whose
    models would drop that cache and say nothing.
    """
    if not IS_RENAMED:
        if kwargs.get(NEW_NAME) is not None:
            raise TypeError(f"{NEW_NAME}: expected {OLD_NAME} before transformers 5.24")
        return OLD_NAME, kwargs.get(OLD_NAME)
    if OLD_NAME in kwargs and NEW_NAME in kwargs:
        raise TypeError(f"{OLD_NAME}: expected one cache, got {NEW_NAME} as well")
    name = OLD_NAME if OLD_NAME in kwargs else NEW_NAME
    return name, kwargs.get(name)


def takes_other_name(module: nn.Module) -> bool:
    """Whether `forward` was written for a transformers whose modules use the other name.

    A cache would travel past such a module among its further keywords.
    """
    names = inspect.signature(type(module).forward).parameters.keys()
    return CACHE not in names and not names.isdisjoint((OLD_NAME, NEW_NAME))


def check_cache_type(name: str, cache: Any, is_bounded: bool) -> None:
    """Raise TypeError where a forward that is bounded, or not, cannot use a cache of this type."""
    if is_bounded and cache is not None and not isinstance(cache, AHNCache):
        raise TypeError(f"{name}: expected an AHNCache, got {type(cache).__name__}")
    if not is_bounded and isinstance(cache, AHNCache):
        raise TypeError(f"{name}: expected a cache of full attention, got an AHNCache")


def claim_cache(name: str, cache: Any, context: ForwardContext) -> int:
    """Tokens that a cache has read; from now on it belongs to the forward's mode.

    Raises TypeError where it is no `AHNCache`, ValueError where it was made for other settings.
    """
    check_cache_type(name, cache, is_bounded=True)
    expected = (context.mode.name, context.window, context.num_sinks)
    for layer in cache.memory_layers:
        layer.mode = layer.mode or context.mode.name
        got = (layer.mode, layer.window, layer.num_sinks)
        if got != expected:
            raise ValueError(
                f"{name}: expected a cache of (mode, window, sinks) {expected}, got {got}"
            )
    return cache.memory_layers[0].seen


def wants_cache(decoder: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the decoder would make a cache if it is given none."""
    wanted = kwargs.get("use_cache")
    wanted = decoder.config.use_cache if wanted is None else wanted
    return bool(wanted) and not drops_cache(decoder)


def drops_cache(decoder: nn.Module) -> bool:
    """Whether the decoder's layers run without a cache, for gradient checkpointing.

    From transformers 5.24 on they do so only where gradients are computed.
    """
    is_checkpointing = decoder.training and bool(getattr(decoder, "gradient_checkpointing", False))
    return is_checkpointing and (torch.is_grad_enabled() or not IS_RENAMED)
