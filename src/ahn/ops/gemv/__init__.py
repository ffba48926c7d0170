"""Linear maps of one new token a row, with the norm before and the sum after."""

from ahn.ops.gemv.api import Map, Norm, add_mapped, gated, map_normed, mapped

__all__ = [
    "Map",
    "Norm",
    "add_mapped",
    "gated",
    "map_normed",
    "mapped",
]
