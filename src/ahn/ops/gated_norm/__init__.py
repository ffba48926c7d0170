"""Norm, output gate and head map of what a memory gave."""

from ahn.ops.gated_norm.api import (
    EPS,
    FusedCell,
    gated_norm,
    gates_of,
    read_out,
    why_not_fused_read_out,
    why_not_gated_norm,
)

__all__ = [
    "EPS",
    "FusedCell",
    "gated_norm",
    "gates_of",
    "read_out",
    "why_not_fused_read_out",
    "why_not_gated_norm",
]
