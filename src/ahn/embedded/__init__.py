"""The small base model and memories that ship with the package, and the recipe that made them."""

from ahn.embedded.model import BASE, MEMORIES, NAME, load, memory_folder

__all__ = [
    "BASE",
    "MEMORIES",
    "NAME",
    "load",
    "memory_folder",
]
