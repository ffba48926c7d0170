"""Attention and memory of one new token a row, in two kernels on a GPU."""

from ahn.ops.decoding.api import fused_decoding
from ahn.ops.decoding.types import NewToken, QKTransform, Ring

__all__ = [
    "NewToken",
    "QKTransform",
    "Ring",
    "fused_decoding",
]
