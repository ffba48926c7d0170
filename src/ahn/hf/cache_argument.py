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

from ahn.hf.attached_state import AttachedState
from ahn.hf.fingerprint import claim_owner
from ahn.layer.cache import AHNCache
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.context import ForwardContext

OLD_NAME, NEW_NAME = "past_key_values", "cache"
OLDER_NAMES = ("layer_past", "past_key_value")  # of a layer's cache, in some families still
IS_RENAMED = NEW_NAME in {field.name for field in fields(BaseModelOutputWithPast)}
BUDGET = ("window", "num_sinks")  # settings that a call may override
CACHE = NEW_NAME if IS_RENAMED else OLD_NAME  # as transformers' own modules and outputs call it


def cache_argument(kwargs: dict[str, Any]) -> tuple[str, Any]:
    """Name and value of the cache among a call's keywords; `(CACHE, None)` where there is none.

    Raises TypeError where both names are given.
    """
    if OLD_NAME in kwargs and NEW_NAME in kwargs:
        raise TypeError(f"{OLD_NAME}: expected one cache, got {NEW_NAME} as well")
    name = next((name for name in (OLD_NAME, NEW_NAME) if name in kwargs), CACHE)
    return name, kwargs.get(name)


def under_known_name(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same keywords, with the cache under a name that transformers takes.

    Before 5.24 its models would drop a cache under the new name and say nothing.
    """
    if IS_RENAMED:
        return kwargs
    return {OLD_NAME if name == NEW_NAME else name: value for name, value in kwargs.items()}


def takes_other_name(module: nn.Module) -> bool:
    """Whether `forward` was written for a transformers whose modules use another name.

    A cache would travel past such a module among its further keywords.
    """
    names = inspect.signature(type(module).forward).parameters.keys()
    return CACHE not in names and not names.isdisjoint((OLD_NAME, NEW_NAME, *OLDER_NAMES))


def check_cache_type(name: str, cache: Any, is_bounded: bool) -> None:
    """Raise TypeError where a forward that is bounded, or not, cannot use a cache of this type."""
    if is_bounded and cache is not None and not isinstance(cache, AHNCache):
        raise TypeError(f"{name}: expected an AHNCache, got {type(cache).__name__}")
    if not is_bounded and isinstance(cache, AHNCache):
        raise TypeError(f"{name}: expected a cache of full attention, got an AHNCache")


def claim_cache(
    name: str, cache: Any, context: ForwardContext, decoder: Any, state: AttachedState
) -> int:
    """Tokens that a cache has read; from now on it belongs to the model and to the forward's mode.

    Raises TypeError where it is no `AHNCache`, ValueError where it was made for other settings, or
    its rows end in padding, or another model has written it.
    """
    check_cache_type(name, cache, is_bounded=True)
    if cache.ends_in_padding:
        raise ValueError(f"{name}: expected rows that can be read on, got some that end in padding")
    cache.leave_inference_mode()
    own_settings = state.config.to_dict()
    for key in (own_settings.keys() | cache.settings.keys()) - {*BUDGET, "num_hidden_layers"}:
        mine, got = own_settings.get(key), cache.settings.get(key)
        if mine != got:
            raise ValueError(f"{name}: expected a cache of {key}={mine}, got {got}")
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, AHNCacheLayer):
            continue
        own = context.of_layer(index)
        expected = (own.mode.name, own.window, own.num_sinks)
        layer.mode = layer.mode or context.mode.name
        got = (layer.mode, layer.window, layer.num_sinks)
        if got != expected:
            raise ValueError(
                f"{name}: expected a cache of (mode, window, sinks) {expected}, got {got}"
            )
    claim_owner(name, cache, decoder, state)
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
