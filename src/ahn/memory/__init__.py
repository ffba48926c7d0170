"""What is learned: memory cells by name. A new cell is one file here and one `@register`."""

from ahn.memory.base import Memory, build_cell, cell_by_name, register, registered_cells
from ahn.memory.delta_net import DeltaNet
from ahn.memory.gated_delta_net import GatedDeltaNet
from ahn.memory.mamba2 import Mamba2
from ahn.memory.router import PositionRouter

__all__ = [
    "DeltaNet",
    "GatedDeltaNet",
    "Mamba2",
    "Memory",
    "PositionRouter",
    "build_cell",
    "cell_by_name",
    "register",
    "registered_cells",
]
