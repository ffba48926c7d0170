"""The memory that this process can still take, and the window that would fit into it."""

from __future__ import annotations

import os

import torch
from transformers import PreTrainedModel

from ahn.cost import Shape, cache_bytes
from ahn.hf.attached_state import attached_state
from ahn.memory import Slots, memory_by_name

SHARE_OF_CACHE = 0.5  # of what is free: activations and what the system needs take the rest
SPAN = 1024  # tokens over which a window's bytes are averaged


def free_on_gpu(device: torch.device) -> int:
    """Bytes that are free on a GPU, or that PyTorch holds there without using them."""
    free = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not say."""
    if device.type == "cuda":
        return free_on_gpu(device)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def largest_window(model: PreTrainedModel, free: int) -> int:
    """The longest window of an attached model that one text needs half of so many bytes for.

    0 where there is none.
    """
    settings = attached_state(model).config
    cell = None if settings.memory is None else memory_by_name(settings.memory)
    slots = Slots if settings.slots else None

    def size(window: int) -> int:
        known = (Shape.of(model.config), 1, settings.with_budget(window), cell)
        return cache_bytes(*known, model.dtype.itemsize, slots)

    per_token = (size(1 + SPAN) - size(1)) / SPAN
    return max(0, 1 + int((SHARE_OF_CACHE * free - size(1)) / per_token))
