"""The small base model and memories that ship with the package, and the recipe that made them."""

from ahn.embedded.model import BASE, MEMORIES, load

__all__ = ["BASE", "MEMORIES", "load"]
