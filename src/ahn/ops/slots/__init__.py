"""Exact slots: which of the tokens that left the window are kept, and in how many bits."""

from ahn.ops.slots.api import choose
from ahn.ops.slots.buffers import SlotBuffers, Stored, loaded, stored
from ahn.ops.slots.choice import BLOCK, EMPTY, Choice, insert_one
from ahn.ops.slots.head_rows import HeadRows
from ahn.ops.slots.parallel import (
    attend_until,
    lifetimes,
    soft_slot_attention,
    visible_until,
)
from ahn.ops.slots.quantisation import BITS, dequantised, group_size, quantised, quantised_shapes

__all__ = [
    "BITS",
    "BLOCK",
    "EMPTY",
    "Choice",
    "HeadRows",
    "SlotBuffers",
    "Stored",
    "attend_until",
    "choose",
    "dequantised",
    "group_size",
    "insert_one",
    "lifetimes",
    "loaded",
    "quantised",
    "quantised_shapes",
    "soft_slot_attention",
    "stored",
    "visible_until",
]
