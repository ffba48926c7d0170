"""Softmax attention over sinks and a window."""

from ahn.ops.window_attention.api import (
    ExactRows,
    SavedOutputs,
    decode_attention,
    num_tokens,
    token_slice,
    why_not_dense,
    window_attention,
)

__all__ = [
    "ExactRows",
    "SavedOutputs",
    "decode_attention",
    "num_tokens",
    "token_slice",
    "why_not_dense",
    "window_attention",
]
