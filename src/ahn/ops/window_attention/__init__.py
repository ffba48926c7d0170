"""Softmax attention over sinks and a window."""

from ahn.ops.window_attention.api import decode_attention, window_attention
from ahn.ops.window_attention.exact_rows import ExactRows
from ahn.ops.window_attention.ring_views import columns, count
from ahn.ops.window_attention.saved import SavedOutputs

__all__ = [
    "ExactRows",
    "SavedOutputs",
    "columns",
    "count",
    "decode_attention",
    "window_attention",
]
