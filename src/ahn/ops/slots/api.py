"""Which tokens stand in the slots: contract and choice of implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.backends import (
    Backend,
    device_unsupported_reason,
    dtype_unsupported_reason,
    register,
)
from ahn.ops.backends import choose as choose_backend
from ahn.ops.slots import launch
from ahn.ops.slots.choice import BLOCK, Choice, choose_by_sorts

LARGEST_HEAD = 65536  # slots: the square root of it is what the kernel looks at in one go


def choose(
    priority: Tensor,
    place: Tensor,
    arriving: Tensor,
    sizes: Tensor | None = None,
    block: int = BLOCK,
    *,
    kernels: str = "auto",
) -> Choice:
    """Let E tokens arrive: who is seen by which reader, and who stays. Nothing is changed.

    Blocks follow one another, but only priorities take part in that.

    Args:
        priority: `[B, G, M]`, of the tokens in the slots.
        place: `[B, G, M]` integers, a token's position + 1, so that 0 is an empty slot.
        arriving: `[B, G, E]`, priorities of the arrivals; `EMPTY` ones are never kept.
        sizes: `[G]`, slots that a head may fill, its first ones; None is all M.
        block: most readers of a block; the sets do not depend on it.
        kernels: `auto`, `torch` or `triton`, see `ahn.ops.backends`.

    Raises:
        ValueError: the kernels asked for cannot run here.
    """
    block = min(block, arriving.shape[-1])
    backend = choose_backend("slot_choice", kernels, priority)
    run = launch.choose if backend == "triton" else choose_by_sorts
    return run(priority, place, arriving, sizes, block)


def _triton_unsupported_reason(priority: Tensor) -> str | None:
    reason = device_unsupported_reason(priority)
    if reason is None and (most := priority.shape[-1]) > LARGEST_HEAD:
        return f"at most {LARGEST_HEAD} slots a head, got {most}"
    return reason or dtype_unsupported_reason((torch.float32,), priority)


register(Backend("slot_choice", "triton", 1, _triton_unsupported_reason))
