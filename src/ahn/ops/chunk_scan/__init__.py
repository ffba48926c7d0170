"""What a text's chunks write into a state and read from it, by Triton kernels.

Three launches: every segment of the text tells what it does to a state, one pass joins these
effects into the states that segments start from, and all segments read in parallel. A text of
one segment, or a batch that fills the device without, needs the last launch alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CHUNK", "Chunks", "padded", "scan"]

CHUNK = 64
COLUMNS = 64  # of a state, a program
JOINED_COLUMNS = 32
LEAST_PER_SEGMENT = 8  # chunks, so that joining costs less than it saves


@dataclass(frozen=True)
class Chunks:
    """What was made of a text's keys and gates; N chunks of `CHUNK` tokens.

    Attributes:
        key_scale: `[B, H, N CHUNK]` float32, factor of the keys.
        total: `[B, H, N CHUNK]` float32, log2 of the decay since a chunk's start; None: no decay.
        solved: `[B, H, N, CHUNK, CHUNK]`, what makes writes of a chunk's errors; None where
            values are written as they are.
    """

    key_scale: Tensor
    total: Tensor | None
    solved: Tensor | None = None

    @property
    def count(self) -> int:
        return self.key_scale.shape[2] // CHUNK

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """solved, total, key_scale as the kernels take them; what they don't read stands in."""
        given = (self.solved, self.total)
        solved, total = (self.key_scale if x is None else x for x in given)
        return solved, total, self.key_scale


def scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chunks: Chunks,
    initial_state: Tensor | None,
    *,
    normalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Write each chunk, then read it; see `ahn.ops.delta_rule` and `ahn.ops.ssd`.

    Args:
        query: `[B, T, H, K]`; key: `[B, T, G, K]`; value: `[B, T, G, V]`; one dtype.
        initial_state: `[B, H, K, V]`; None is zeros.
        normalize: divide queries by their length; what keys are divided by is in `chunks`.

    Returns:
        out `[B, T, H, V]` in the dtype of the values, final_state `[B, H, K, V]` float32.
    """
    from ahn.ops.chunk_scan import kernels

    batch, length, heads, dim = query.shape
    width = value.shape[-1]
    blocks = -(-width // COLUMNS)
    segments, _ = split = _split(chunks.count, batch * heads * blocks, query.device)
    starts = query.new_empty(batch, heads, segments, dim, width, dtype=torch.float32)
    starts[:, :, 0] = 0.0 if initial_state is None else initial_state
    if segments > 1:
        _start_segments(key, value, chunks, starts, split)
    out = value.new_empty(batch, length, heads, width)
    final = torch.empty_like(starts[:, :, 0])
    kernels.read[(heads * blocks, segments, batch)](
        query, key, value, *chunks.tensors, starts, out, final, scale, *query.stride()[:3],
        *_places(key, value, chunks, split), NORMALIZE=normalize, CHUNK=CHUNK, COLUMNS=COLUMNS,
        DECAY=chunks.total is not None, **_sizes(chunks, starts),
    )  # fmt: skip
    return out, final


def _split(chunks: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Number of segments, of how many chunks: programs of each that fill the device, twice over."""
    units = 1
    if device.type == "cuda":
        units = torch.cuda.get_device_properties(device).multi_processor_count
    segments = max(1, min(2 * units // programs, chunks // LEAST_PER_SEGMENT))
    per_segment = -(-chunks // segments)
    return -(-chunks // per_segment), per_segment


def _start_segments(
    key: Tensor, value: Tensor, chunks: Chunks, starts: Tensor, split: tuple[int, int]
) -> None:
    """Fill in the states `[B, H, P, K, V]` of which the first is given."""
    from ahn.ops.chunk_scan import kernels

    batch, heads, segments, dim, width = starts.shape
    is_delta = chunks.solved is not None
    # A segment of the delta rule multiplies a state by a matrix, others by a number.
    moves = starts.new_empty(batch, heads, segments, *((dim, dim) if is_delta else ()))
    blocks = -(-width // COLUMNS) + (-(-dim // COLUMNS) if is_delta else 0)
    sizes = _sizes(chunks, starts)
    kernels.carry[(heads * blocks, segments - 1, batch)](
        key, value, *chunks.tensors, starts, moves, *_places(key, value, chunks, split),
        CHUNK=CHUNK, COLUMNS=COLUMNS, DECAY=chunks.total is not None, **sizes,
    )  # fmt: skip
    if segments > 2:
        grid = (-(-width // JOINED_COLUMNS), batch * heads)
        kernels.join[grid](starts, moves, segments, COLUMNS=JOINED_COLUMNS, **sizes)


def _places(key: Tensor, value: Tensor, chunks: Chunks, split: tuple[int, int]) -> tuple[int, ...]:
    """Strides of keys and values, T, chunks, segments, chunks of a segment, H and G."""
    heads = chunks.key_scale.shape[1]
    counts = (key.shape[1], chunks.count, *split, heads, key.shape[2])
    return *key.stride()[:3], *value.stride()[:3], *counts


def _sizes(chunks: Chunks, starts: Tensor) -> dict[str, int]:
    dim, width = starts.shape[-2:]
    return {"DELTA": chunks.solved is not None, "K": dim, "V": width, "PADDED": padded(dim)}


def padded(size: int) -> int:
    """The next power of two that a matrix product takes."""
    return max(16, 1 << (size - 1).bit_length())
