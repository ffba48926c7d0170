"""Softmax attention over sinks and a window."""

from ahn.ops.window_attention.api import (
    KeptOutputs,
    columns,
    count,
    slot_attention,
    why_not_dense,
    window_attention,
)

__all__ = [
    "KeptOutputs",
    "columns",
    "count",
    "slot_attention",
    "why_not_dense",
    "window_attention",
]
