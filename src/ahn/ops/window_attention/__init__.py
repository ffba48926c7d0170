"""Softmax attention over sinks and a window."""

from ahn.ops.window_attention.api import (
    SavedOutputs,
    columns,
    count,
    slot_attention,
    why_not_dense,
    window_attention,
)

__all__ = [
    "SavedOutputs",
    "columns",
    "count",
    "slot_attention",
    "why_not_dense",
    "window_attention",
]
