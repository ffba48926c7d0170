"""How a text is cut into segments, and the states that these start from.

Every segment tells what it does to a state, then one pass joins these effects; so all segments
are read in parallel. A text of one segment needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ahn.ops.chunk_scan.text import COLUMNS, Text

MOST = 32
RESIDENT = 2  # programs that a multiprocessor runs at a time
# What joining a segment and reading a chunk take, where carrying a chunk takes 1.
JOINED, READ = 3.0, 2.0


@dataclass(frozen=True)
class Segments:
    """P segments of `length` chunks, the last perhaps of fewer.

    Attributes:
        starts: `[B, H, P, K, V]` float32, the state that each starts from.
        moves: what each multiplies a state by, float32: `[B, H, P, K, K]` of the delta rule, else
            `[B, H, P]`. The first and the last are not filled in.
    """

    starts: Tensor
    moves: Tensor
    length: int

    @property
    def split(self) -> tuple[int, int]:
        """P and the chunks of each."""
        return self.starts.shape[2], self.length


def start_segments(text: Text, initial_state: Tensor | None) -> Segments:
    """Cut the text so that the device is busy, and carry the state to where segments start."""
    from ahn.ops.chunk_scan.triton.forward import carry

    batch, heads, dim, width = text.shape
    count, length = _split(text)
    starts = text.query.new_empty(batch, heads, count, dim, width, dtype=torch.float32)
    starts[:, :, 0] = 0.0 if initial_state is None else initial_state
    is_delta = text.chunks.solved is not None
    moves = starts.new_empty(batch, heads, count, *((dim, dim) if is_delta else ()))
    segments = Segments(starts, moves, length)
    if count > 1:
        grid = (heads * _carrying_programs(text), count - 1, batch)
        carry[grid](
            *text.arguments, starts, moves, *text.counts, *segments.split, **text.sizes,
            num_warps=4, num_stages=3,
        )  # fmt: skip
        join_segments(text, starts, moves, back=False)
    return segments


def join_segments(text: Text, states: Tensor, moves: Tensor, back: bool) -> None:
    """QKTransform what segments add to a state into that state; see `kernels.forward.join`."""
    from ahn.ops.chunk_scan.triton.forward import join

    batch, heads, count, _, width = states.shape
    if count > 2:
        sizes = {name: text.sizes[name] for name in ("DELTA", "K", "V", "PADDED")}
        grid = (-(-width // 32), batch * heads)
        join[grid](states, moves, count, BACK=back, COLUMNS=32, num_warps=8, **sizes)


def _carrying_programs(text: Text) -> int:
    """Programs of one head that carry a segment: columns of its state, and of what moves one."""
    dim = text.shape[2]
    return text.blocks + (-(-dim // COLUMNS) if text.chunks.solved is not None else 0)


def _split(text: Text) -> tuple[int, int]:
    """Number of segments, of how many chunks."""
    device, units = text.query.device, 1
    if device.type == "cuda":
        units = torch.cuda.get_device_properties(device).multi_processor_count
    heads = text.shape[0] * text.shape[1]
    return _fastest(text.count, heads, text.blocks, _carrying_programs(text), units)


@lru_cache(maxsize=1024)
def _fastest(chunks: int, heads: int, blocks: int, carrying: int, units: int) -> tuple[int, int]:
    """The least time by count of rounds of programs, of which a head's segment takes `blocks` to
    be read and `carrying` to be carried; `units` multiprocessors."""

    def rounds(programs: int) -> int:
        return -(-heads * programs // (RESIDENT * units))

    def time(count: int) -> float:
        each = READ * rounds(count * blocks) + rounds((count - 1) * carrying)
        return -(-chunks // count) * each + JOINED * (count > 1) * count

    best = min(range(1, min(MOST, chunks) + 1), key=time)
    length = -(-chunks // best)
    return -(-chunks // length), length
