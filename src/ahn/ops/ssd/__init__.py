"""Mamba2's recurrence (state-space duality)."""

from ahn.ops.ssd.api import ssd
from ahn.ops.ssd.reference import chunk_ssd, recurrent_ssd

__all__ = [
    "chunk_ssd",
    "recurrent_ssd",
    "ssd",
]
