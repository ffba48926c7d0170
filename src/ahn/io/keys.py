"""Which tensors of a checkpoint, and which model types, are those of a memory."""

from __future__ import annotations

PREFIX = "ahn_"  # of an attached model's type: `ahn_qwen2`
PARTS = (".ahn.", ".ahn_router.", ".ahn_slots.")  # what tells a memory's key from the base's


def is_memory(key: str) -> bool:
    """Whether a tensor of that name belongs to a memory."""
    return any(part in key for part in PARTS)
