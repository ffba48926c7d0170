"""The ways to look back that an evaluation compares: one line of `METHODS` each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ahn.layer.cache import AHNCache
from ahn.memory import STATE
from ahn.modeling import compressive, disabled, memory_off
from ahn.modeling.attached import AHNModelMixin

SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Method:
    """One way to look back.

    Attributes:
        context: the context in which a model looks back this way.
        needs_memory: whether a model without a trained memory is refused.
        change: changes a cache in place between a context and the continuation to score; such a
            method does not generate.
    """

    context: Callable[[PreTrainedModel], AbstractContextManager[Any]]
    needs_memory: bool = False
    change: Callable[[Cache], None] | None = None


def _full(model: PreTrainedModel) -> AbstractContextManager[Any]:
    return disabled(model) if isinstance(model, AHNModelMixin) else nullcontext()


@torch.no_grad()
def shuffle_memory(cache: Cache) -> None:
    """The same contents under shuffled addresses: permute the key dimension of every state.

    A query then meets what was written under other keys, of the same size and in the same head:
    what a memory still contributes does not come from looking up what was written.
    """
    assert isinstance(cache, AHNCache)
    generator = torch.Generator().manual_seed(SHUFFLE_SEED)
    for layer in cache.memory_layers:
        state = layer.states.get(STATE)  # [B, H, K, V]
        if state is not None:
            order = torch.randperm(state.shape[2], generator=generator)
            layer.set_states({STATE: state[:, :, order.to(state.device)]})


METHODS = {
    "ahn": Method(lambda model: nullcontext(), needs_memory=True),
    "full": Method(_full),
    "window": Method(memory_off),
    "compressive-max": Method(lambda model: compressive(model, "max")),
    "compressive-avg": Method(lambda model: compressive(model, "avg")),
    "ahn-shuffled": Method(lambda model: nullcontext(), True, shuffle_memory),
}


def method_named(name: str) -> Method:
    """The method of that name; ValueError lists them all."""
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]
