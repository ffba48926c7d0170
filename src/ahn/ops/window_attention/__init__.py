"""Softmax attention over sinks and a window."""

from ahn.ops.window_attention.api import decode_attention, window_attention
from ahn.ops.window_attention.exact_rows import ExactRows
from ahn.ops.window_attention.ring_views import num_tokens, token_slice
from ahn.ops.window_attention.saved import SavedOutputs

__all__ = [
    "ExactRows",
    "SavedOutputs",
    "decode_attention",
    "num_tokens",
    "token_slice",
    "window_attention",
]
