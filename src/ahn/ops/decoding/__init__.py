"""Attention and memory of one new token a row, in two kernels."""

from ahn.ops.decoding.api import NewToken, QKTransform, Ring, fused_decoding, why_not_fused

__all__ = [
    "NewToken",
    "QKTransform",
    "Ring",
    "fused_decoding",
    "why_not_fused",
]
