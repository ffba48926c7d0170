"""Softmax attention over sinks and a window."""

from ahn.ops.window_attention.api import (
    ExactRows,
    SavedOutputs,
    columns,
    count,
    decode_attention,
    why_not_dense,
    window_attention,
)

__all__ = [
    "ExactRows",
    "SavedOutputs",
    "columns",
    "count",
    "decode_attention",
    "why_not_dense",
    "window_attention",
]
