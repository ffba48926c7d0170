"""Memories by name: those of this package, and those that other packages bring."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from ahn.memory.contract import Memory

ENTRY_POINT_GROUP = "ahn.memories"
_MEMORIES: dict[str, type[Memory]] = {}


def register(memory: type[Memory]) -> type[Memory]:
    """Class decorator: make a memory known by its class name.

    Packages can also name theirs under the entry point group `ahn.memories`.

    Raises:
        ValueError: another class has the name.
    """
    name = memory.__name__
    if _MEMORIES.setdefault(name, memory) is not memory:
        raise ValueError(f"memory: expected an unused name, got {name!r} a second time")
    return memory


def memory_by_name(name: str) -> type[Memory]:
    """The registered class of that name; raises ValueError that lists the known names."""
    if name not in _MEMORIES:
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
            return entry.load()
        raise ValueError(
            f"memory: expected one of {', '.join(registered_memories())}, got {name!r}"
        )
    return _MEMORIES[name]


def build_memory(name: str, hidden_size: int, num_heads: int, head_dim: int, **options: Any) -> Any:
    """A fresh, initialised memory; `options` are those of its class. Raises as `memory_by_name`."""
    memory = memory_by_name(name)(hidden_size, num_heads, head_dim, **options)
    memory.reset_parameters()
    return memory


def registered_memories() -> list[str]:
    """Names of all memories: the registered ones, then those of installed entry points."""
    return list(dict.fromkeys([*_MEMORIES, *entry_points(group=ENTRY_POINT_GROUP).names]))
