"""What a text's chunks write into a state and read from it, by Triton kernels.

Three launches: every segment of the text tells what it does to a state, one pass joins these
effects into the states that segments start from, and all segments read in parallel. A text of
one segment, or a batch that fills the device without, needs the last launch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from ahn.ops.layout import compute_dtype

__all__ = ["CHUNK", "Chunks", "scan", "why_not_triton"]

CHUNK = 64
COLUMNS = 64  # of a state, a program
LEAST_PER_SEGMENT = 8  # chunks, so that joining costs less than it saves


def why_not_triton(query: Tensor, value: Tensor) -> str | None:
    """What these kernels would need; None where they can run."""
    if not query.is_cuda:
        return f"a CUDA device, got {query.device}"
    if find_spec("triton") is None:
        return "triton to be installed"
    if query.dtype != torch.bfloat16 or value.dtype != torch.bfloat16:
        return f"bfloat16, got {query.dtype} and {value.dtype}"
    if max(query.shape[-1], value.shape[-1]) > 256:
        return f"head sizes of at most 256, got {query.shape[-1]} and {value.shape[-1]}"
    return None


@dataclass(frozen=True)
class Chunks:
    """What was made of a text's keys and gates; N chunks of `CHUNK` tokens.

    Attributes:
        total: `[B, H, N CHUNK]` float32, log2 of the decay since a chunk's start; None: no decay.
        key_scale: `[B, H, N CHUNK]` float32, factor of the keys.
        solved: `[B, H, N, CHUNK, CHUNK]`, what makes writes of a chunk's errors; None where
            values are written as they are.
    """

    total: Tensor | None
    key_scale: Tensor
    solved: Tensor | None = None

    @property
    def count(self) -> int:
        return self.key_scale.shape[2] // CHUNK


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
        initial_state: `[B, H, K, V]` float32; None is zeros.
        normalize: divide queries by their length; the keys' are in `chunks.key_scale`.

    Returns:
        out `[B, T, H, V]` in the dtype of the values, final_state `[B, H, K, V]` float32.
    """
    from ahn.ops.chunk_scan import kernels

    batch, length, heads, dim = query.shape
    width = value.shape[-1]
    blocks = -(-width // COLUMNS)
    segments, per_segment = split(chunks.count, batch * heads * blocks, query.device)
    state = (batch, heads, dim, width)
    starts = query.new_empty(batch, heads, segments, dim, width, dtype=torch.float32)
    if initial_state is None:
        starts[:, :, 0].zero_()
    else:
        starts[:, :, 0] = initial_state
    total = chunks.key_scale if chunks.total is None else chunks.total
    solved = chunks.key_scale if chunks.solved is None else chunks.solved
    out = value.new_empty(batch, length, heads, width)
    final = starts.new_empty(state)
    is_delta = chunks.solved is not None
    strides = (*key.stride()[:3], *value.stride()[:3])
    counts = (length, chunks.count, segments, per_segment, heads, key.shape[2])
    sizes = {"DELTA": is_delta, "K": dim, "V": width, "PADDED": padded(dim)}
    more = {"DECAY": chunks.total is not None, "CHUNK": CHUNK, "COLUMNS": COLUMNS}
    more["PRECISION"] = "ieee" if query.dtype == torch.float32 else "tf32"
    if segments > 1:
        moves = starts.new_empty(batch, heads, segments, dim, dim if is_delta else 0)
        decays = starts.new_empty(batch, heads, segments)
        programs = heads * (blocks + (-(-dim // COLUMNS) if is_delta else 0))
        kernels.carry[(programs, segments - 1, batch)](
            key, value, solved, total, chunks.key_scale, starts, moves, decays, *strides, *counts,
            **sizes, **more,
        )  # fmt: skip
        if segments > 2:
            kernels.join[(-(-width // 32), batch * heads)](
                starts, moves, decays, segments, **sizes, COLUMNS=32, PRECISION="tf32x3"
            )
    kernels.read[(heads * blocks, segments, batch)](
        query, key, value, solved, total, chunks.key_scale, starts, out, final, scale,
        *query.stride()[:3], *strides, *counts, NORMALIZE=normalize, **sizes, **more,
    )  # fmt: skip
    return out, final


def split(chunks: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Into how many segments, and of how many chunks, so that programs fill the device."""
    units = 4
    if device.type == "cuda":
        units = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    segments = max(1, min(units // programs, chunks // LEAST_PER_SEGMENT))
    per_segment = -(-chunks // segments)
    return -(-chunks // per_segment), per_segment


def padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
