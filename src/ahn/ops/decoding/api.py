"""One decoding step of a layer: contract and choice of implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.backends import (
    Backend,
    choose,
    device_unsupported_reason,
    dtype_unsupported_reason,
    register,
)
from ahn.ops.decoding import launch, reference
from ahn.ops.decoding.types import NewToken, Ring
from ahn.ops.gated_norm import CellSpec
from ahn.ops.slots import group_size

LARGEST_HEAD = 256


@torch.no_grad()
def fused_decoding(
    token: NewToken,
    ring: Ring,
    cell: CellSpec | None,
    scale: float | None = None,
    *,
    kernels: str = "auto",
) -> Tensor:
    """Write the evicted token, read the memory, attend to all exact tokens, store the new token.

    Slots are attended to as they are: who is evicted has been inserted, see `insert_evicted`.

    All of `ring` is updated in place. The host knows shapes and `limit` alone, so a captured
    graph of it can be replayed.

    Args:
        cell: the memory; None has none, and leaves gates and state as they are.
        scale: factor on the scores; None is K^-1/2.
        kernels: `auto`, `torch` or `triton`, see `ahn.ops.backends`.

    Returns:
        `[B, 1, H, V]`, the sum of exact attention and what the memory's read was mapped to.

    Raises:
        ValueError: the kernels asked for cannot run here.
    """
    scale = token.query.shape[-1] ** -0.5 if scale is None else scale
    backend = choose("fused_decoding", kernels, token.query, token.value)
    run = launch.fused_decoding if backend == "triton" else reference.fused_decoding
    return run(token, ring, cell, scale)


def _triton_unsupported_reason(
    query: Tensor,
    value: Tensor,
    *,
    slot_bits: int | None = None,
    slot_distance: object | None = None,
    sink_logits: Tensor | None = None,
) -> str | None:
    """`slot_bits` and `slot_distance` are those of a layer's exact slots, where it has some."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    reason = device_unsupported_reason(query) or dtype_unsupported_reason(dtypes, query)
    if reason is None and slot_distance is not None:
        return "slots at any distance, got slot_distance"
    if reason is None and slot_bits in (8, 4) and (shared := group_size(query.shape[-1])) % 2:
        return f"codes of slots whose scale is that of an even number of them, got {shared}"
    sizes = (query.shape[-1], value.shape[-1])
    if reason is None and (sizes[0] != sizes[1] or sizes[0] > LARGEST_HEAD):
        return f"keys and values of one size up to {LARGEST_HEAD}, got {sizes[0]} and {sizes[1]}"
    if reason is None and sink_logits is not None:
        return "no sink logits, got some"
    return reason


register(Backend("fused_decoding", "triton", 1, _triton_unsupported_reason))
