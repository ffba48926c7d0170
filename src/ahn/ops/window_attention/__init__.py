"""Softmax attention over sinks and a window."""

from ahn.ops.window_attention.api import chosen_backend, window_attention
from ahn.ops.window_attention.exact_rows import ExactRows, Reach, SlotRows, Turned
from ahn.ops.window_attention.one_query import decode_attention
from ahn.ops.window_attention.ring_views import num_tokens, token_slice
from ahn.ops.window_attention.saved import SavedOutputs

__all__ = [
    "ExactRows",
    "Reach",
    "SavedOutputs",
    "SlotRows",
    "Turned",
    "chosen_backend",
    "decode_attention",
    "num_tokens",
    "token_slice",
    "window_attention",
]
