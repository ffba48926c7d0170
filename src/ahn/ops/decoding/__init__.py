"""Attention and memory of one new token a row, in two kernels on a GPU."""

from ahn.ops.decoding.api import fused_decoding
from ahn.ops.decoding.insertion import Leaving, SlotLayer, StepInsertion, insert_evicted
from ahn.ops.decoding.types import NewToken, QKTransform, Ring

__all__ = [
    "Leaving",
    "NewToken",
    "QKTransform",
    "Ring",
    "SlotLayer",
    "StepInsertion",
    "fused_decoding",
    "insert_evicted",
]
