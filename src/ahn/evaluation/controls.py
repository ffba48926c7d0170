"""What a memory is compared with: other choices of the same bytes, and parts of it taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import starmap

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ahn.config import AHNConfig
from ahn.layer.cache import AHNCache
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.memory import STATE, Slots
from ahn.memory.slots import PLACE, PRIORITY, SCALES, VALUES

SEED = 0
SETTINGS = [field.name for field in fields(AHNConfig)]


@contextmanager
def newest_slots(model: PreTrainedModel) -> Iterator[None]:
    """Within the context slots keep the newest tokens: a longer window of the same bytes."""
    with _changed_slots(model, _score_alike):
        yield


@contextmanager
def random_slots(model: PreTrainedModel) -> Iterator[None]:
    """Within the context slots keep tokens by a random function of their hidden states."""
    with _changed_slots(model, _score_at_random):
        yield


@torch.no_grad()
def shuffle_states(cache: Cache) -> None:
    """The same contents under shuffled addresses: permute the key dimension of every state.

    A query then meets what was written under other keys, of the same size and in the same head:
    what a memory still contributes does not come from looking up what was written.
    """
    generator = torch.Generator().manual_seed(SEED)
    for layer in _bounded(cache).memory_layers:
        state = layer.states.get(STATE)  # [B, H, K, V]
        if state is not None:
            order = torch.randperm(state.shape[2], generator=generator)
            layer.set_states({STATE: state[:, :, order.to(state.device)]})


def clear_states(cache: Cache) -> None:
    """Take away what the cells hold; slots stay."""
    for layer in _bounded(cache).memory_layers:
        if STATE in layer.states:
            layer.set_states({STATE: torch.zeros_like(layer.states[STATE])})


def empty_slots(cache: Cache) -> None:
    """Take away what the slots hold; cells stay."""
    for layer in _bounded(cache).memory_layers:
        if PLACE in layer.states:
            layer.set_states(
                {
                    PLACE: torch.zeros_like(layer.states[PLACE]),
                    PRIORITY: torch.full_like(layer.states[PRIORITY], -torch.inf),
                }
            )


def exchange_values(cache: Cache) -> None:
    """Give each key in a slot the value of another: what is still found was not looked up."""
    cache = _bounded(cache)
    config = AHNConfig.from_dict({k: x for k, x in cache.settings.items() if k in SETTINGS})
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, AHNCacheLayer) or PLACE not in layer.states:
            continue
        sizes = config.slots_of(index, layer.keys.shape[1])
        orders = [_next_filled(places) for places in layer.states[PLACE].split(sizes, 1)]
        names = [x for x in (VALUES, VALUES + SCALES) if x in layer.states]
        parts = {x: zip(layer.states[x].split(sizes, 1), orders) for x in names}
        layer.set_states({x: torch.cat([*starmap(_taken, parts[x])], 1) for x in names})


def has_slots(model: PreTrainedModel) -> bool:
    """Whether a layer of the model has exact slots."""
    return any(isinstance(module, Slots) for module in model.modules())


def _next_filled(places: Tensor) -> Tensor:
    """Of each slot `[B, M]` of a head the filled one whose token came next.

    After the last comes the first. The order is that of places (0 is empty), since that of slots
    depends on how a text was cut.
    """
    filled = places > 0
    by_place = places.masked_fill(~filled, torch.iinfo(places.dtype).max).argsort(-1)
    following = torch.arange(1, places.shape[-1] + 1, device=places.device).expand(places.shape)
    following = torch.where(following < filled.sum(-1, keepdim=True), following, 0)
    order = torch.empty_like(by_place).scatter(-1, by_place, by_place.gather(-1, following))
    return torch.where(filled, order, torch.arange(places.shape[-1], device=places.device))


def _taken(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand_as(x))


def _bounded(cache: Cache) -> AHNCache:
    assert isinstance(cache, AHNCache)
    return cache


@contextmanager
@torch.no_grad()
def _changed_slots(model: PreTrainedModel, change: Callable[[Slots], None]) -> Iterator[None]:
    """Within the context every layer's slots have other parameters."""
    modules = [module for module in model.modules() if isinstance(module, Slots)]
    before = [[x.clone() for x in module.parameters()] for module in modules]
    try:
        for module in modules:
            change(module)
        yield
    finally:
        for module, values in zip(modules, before):
            for parameter, value in zip(module.parameters(), values):
                parameter.copy_(value)


def _score_alike(slots: Slots) -> None:
    for parameter in slots.net[-1].parameters():
        parameter.zero_()
    slots.rate.fill_(1.0)


def _score_at_random(slots: Slots) -> None:
    generator = torch.Generator().manual_seed(SEED)
    for parameter in slots.net.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    slots.rate.zero_()
