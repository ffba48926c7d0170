"""The ways to look back that an evaluation compares: one line of `METHODS` each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ahn.evaluation.controls import (
    clear_states,
    empty_slots,
    exchange_values,
    newest_slots,
    random_slots,
    shuffle_states,
)
from ahn.modeling import compressive, disabled, memory_off
from ahn.modeling.attached import AHNModelMixin


@dataclass(frozen=True)
class Method:
    """One way to look back.

    Attributes:
        context: the context in which a model looks back this way.
        needs_memory: whether a model without a trained memory is refused.
        change: changes a cache in place between a context and the continuation to score; such a
            method does not generate.
        needs_slots: whether a memory without exact slots is refused.
    """

    context: Callable[[PreTrainedModel], AbstractContextManager[Any]]
    needs_memory: bool = False
    change: Callable[[Cache], None] | None = None
    needs_slots: bool = False

    def __post_init__(self) -> None:
        if self.needs_slots:
            object.__setattr__(self, "needs_memory", True)


def _full(model: PreTrainedModel) -> AbstractContextManager[Any]:
    return disabled(model) if isinstance(model, AHNModelMixin) else nullcontext()


METHODS = {
    "ahn": Method(lambda model: nullcontext(), needs_memory=True),
    "full": Method(_full),
    "window": Method(memory_off),
    "compressive-max": Method(lambda model: compressive(model, "max")),
    "compressive-avg": Method(lambda model: compressive(model, "avg")),
    "ahn-shuffled": Method(lambda model: nullcontext(), True, shuffle_states),
    "ahn-no-state": Method(lambda model: nullcontext(), True, clear_states),
    # Of memories with slots: other choices of the same bytes, and what is in the slots.
    "ahn-newest": Method(newest_slots, needs_slots=True),
    "ahn-random": Method(random_slots, needs_slots=True),
    "ahn-exchanged": Method(lambda model: nullcontext(), True, exchange_values, needs_slots=True),
    "ahn-no-slots": Method(lambda model: nullcontext(), True, empty_slots, needs_slots=True),
}


def method_named(name: str) -> Method:
    """The method of that name; ValueError lists them all."""
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]
