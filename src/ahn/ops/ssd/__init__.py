"""Mamba2's recurrence (state-space duality)."""

from ahn.ops.ssd.api import chunk_ssd, recurrent_ssd, ssd

__all__ = [
    "chunk_ssd",
    "recurrent_ssd",
    "ssd",
]
