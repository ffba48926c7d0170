"""Rotary frequencies that would move as a text grows stand still in an attached model.

transformers computes those of `dynamic` and `longrope` anew from the longest position of every
forward, so that a text in chunks is another text than the same at once, and keys in a cache were
rotated by other tables than the queries that look at them. With a memory one table is chosen: the
one that the base uses for a text as long as the budget, the longest that it reads exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

MOVING = ("dynamic", "longrope")
OWN_TYPE = "ahn_rope_type"  # attribute of a pinned module: its rope_type before


def pin_frequencies(decoder: nn.Module, length: int) -> None:
    """Let every moving table of a decoder be that of a text of `length`, whatever comes.

    Nothing is done while the weights are on no device: it is called again once they are loaded.
    """
    unpin_frequencies(decoder)
    for rotary in _moving(decoder):
        if rotary.inv_freq.is_meta:
            continue
        _compute(rotary, length)
        setattr(rotary, OWN_TYPE, rotary.rope_type)
        rotary.rope_type = "default"  # so that the forward takes the table as it is


def unpin_frequencies(decoder: nn.Module) -> None:
    """Undo `pin_frequencies`."""
    for rotary in decoder.modules():
        if hasattr(rotary, OWN_TYPE):
            rotary.rope_type = getattr(rotary, OWN_TYPE)
            delattr(rotary, OWN_TYPE)
            _compute(rotary, 1)


def frequencies_unsupported_reason(decoder: nn.Module) -> str | None:
    """Why the tables of a decoder cannot stand still; None where they can, or do anyway."""
    for module in decoder.modules():
        types = getattr(module, "rope_type", None)
        if isinstance(types, dict) and (moving := {*types.values()} & {*MOVING}):
            return (
                "one rope_type for all layers, or types that do not move with the text, "
                f"got {', '.join(sorted(moving))}"
            )
    return None


def _moving(decoder: nn.Module) -> Iterator[Any]:
    return (x for x in decoder.modules() if getattr(x, "rope_type", None) in MOVING)


def _compute(rotary: Any, length: int) -> None:
    """Let transformers compute the table of a text of that length, from the beginning."""
    position = torch.tensor([[length - 1]], device=rotary.inv_freq.device)
    rotary.inv_freq.copy_(rotary.original_inv_freq)
    rotary.max_seq_len_cached = rotary.original_max_seq_len
    rotary(rotary.inv_freq, position)
