"""What an attached model carries beside its modules, and which mode it is in just now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from types import MappingProxyType
from typing import Any

from torch import nn

from ahn.config import AHNConfig
from ahn.layer.distance import Distance
from ahn.layer.modes import MEMORY, Mode
from ahn.shapes import FULL, OWN_ATTENTION, RECURRENT

ATTACHED = "ahn_attached_state"  # attribute of the decoder


class AttachedState:
    """Settings of an attached model; the mode is the thread's or task's, never the model's.

    Attributes:
        config: window, sinks and memory.
        kernels: the choice that governs all ops, see `ahn.ops.backends`.
        distance: how far back slots are read as they are; None is any distance.
        head: the output embeddings, which belong to the model but not to its decoder.
        other_types: types of the layers without a memory, see `ahn.shapes`.
        warned: whether the warning about untrained positions has been given.
        fingerprint, marks: the last fingerprint of the model, and the marks of the weights that it
            is of, see `ahn.hf.fingerprint`.
    """

    def __init__(
        self,
        config: AHNConfig,
        kernels: str = "auto",
        distance: Distance | None = None,
        other_types: frozenset[str] = frozenset(),
        head: nn.Module | None = None,
    ) -> None:
        self.config, self.kernels, self.distance, self.head = config, kernels, distance, head
        self.other_types = other_types
        self.warned = False
        self.fingerprint: Any = None
        self.marks: Any = None

    @property
    def needs_mask(self) -> bool:
        """Whether some layer without a memory attends, and so looks at the mask."""
        return not self.other_types.isdisjoint({FULL, *OWN_ATTENTION})

    @property
    def recurs(self) -> bool:
        """Whether some layer without a memory is a recurrence."""
        return not self.other_types.isdisjoint(RECURRENT)

    @property
    def mode(self) -> Mode:
        """How the model looks back in this thread or task; the memory where nothing was said."""
        if not _num_active:  # torch.compile cannot trace a context variable
            return MEMORY
        return _modes.get().get(self, MEMORY)

    @contextmanager
    def in_mode(self, mode: Mode) -> Iterator[None]:
        """Within the context, in this thread or task alone, the model looks back this way."""
        before = _modes.get().get(self)
        _count_active(1)
        self._set_mode(mode)
        try:
            yield
        finally:
            # Not by a token: a generator may end in another context than it began in, and modes
            # of other models may have been opened and not closed since.
            self._set_mode(before)
            _count_active(-1)

    def _set_mode(self, mode: Mode | None) -> None:
        others = {state: other for state, other in _modes.get().items() if state is not self}
        _modes.set(others if mode is None else {**others, self: mode})


_modes: ContextVar[Mapping[AttachedState, Mode]] = ContextVar(
    "ahn_modes", default=MappingProxyType({})
)

_num_active = 0  # contexts of `in_mode` that are open anywhere in the process
_lock = Lock()


def _count_active(change: int) -> None:
    global _num_active
    with _lock:
        _num_active += change


def attached_state(model: Any) -> AttachedState:
    """The state of an attached model; ValueError where nothing is attached."""
    state = getattr(model.get_decoder(), ATTACHED, None) if hasattr(model, "get_decoder") else None
    if state is None:
        raise ValueError(f"expected a model with a memory attached, got {type(model).__name__}")
    return state
