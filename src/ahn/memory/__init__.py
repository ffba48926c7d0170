"""What is learned: memories by name. A new one is one file here and one `@register`."""

from ahn.memory.cell import GATES, STATE, Cell
from ahn.memory.contract import Evicted, Memory, MemoryOutput, States, StateSpec
from ahn.memory.delta_net import DeltaNet
from ahn.memory.gated_delta_net import GatedDeltaNet
from ahn.memory.linear_cell import LinearCell
from ahn.memory.mamba2 import Mamba2
from ahn.memory.registry import build_memory, memory_by_name, register, registered_memories
from ahn.memory.router import PositionRouter
from ahn.memory.slots import Slots

__all__ = [
    "GATES",
    "STATE",
    "Cell",
    "DeltaNet",
    "Evicted",
    "GatedDeltaNet",
    "LinearCell",
    "Mamba2",
    "Memory",
    "MemoryOutput",
    "PositionRouter",
    "Slots",
    "StateSpec",
    "States",
    "build_memory",
    "memory_by_name",
    "register",
    "registered_memories",
]
