"""Softmax attention over sinks and a window."""

from ahn.ops.window_attention.api import slot_attention, window_attention
from ahn.ops.window_attention.ring_views import columns, count
from ahn.ops.window_attention.saved import SavedOutputs

__all__ = [
    "SavedOutputs",
    "columns",
    "count",
    "slot_attention",
    "window_attention",
]
