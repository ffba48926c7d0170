"""Phase 2 of the forward: segments of chunks, and the states that they start from.

Every segment computes how it changes a state, all segments at once. One pass over the segments then
gives the state that each of them starts from. A sequence of one segment needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ahn.ops.chunk_scan.prepare import BLOCK_V, ChunkedInputs

MAX_SEGMENTS = 32
LARGEST_PASSED = 128  # a transition of larger heads does not fit into a multiprocessor: no pass
PROGRAMS_PER_SM = 2  # that run at the same time
# Time of the pass over one segment, and of one chunk in the output phase, where updating the state
# over one chunk takes 1.
PASS_COST, OUTPUT_COST = 3.0, 2.0


@dataclass(frozen=True)
class Segments:
    """P segments of `length` chunks each; the last one may have fewer.

    Attributes:
        h0: `[B, H, P, K, V]` float32, the state that each segment starts from.
        transitions: what each segment multiplies a state by, float32: matrices `[B, H, P, K, K]`
            for the delta rule, else numbers `[B, H, P]`. The first and the last are not filled in.
        length: chunks of a segment.
    """

    h0: Tensor
    transitions: Tensor
    length: int

    @property
    def counts(self) -> tuple[int, int]:
        """Number of segments, chunks of a segment."""
        return self.h0.shape[2], self.length


def segment_states(chunked: ChunkedInputs, initial_state: Tensor | None) -> Segments:
    """Cut the sequence so that the GPU is busy, and compute the state each segment starts from."""
    from ahn.ops.chunk_scan.triton.forward import segment_state_kernel

    batch, heads, dim, width = chunked.state_shape
    num_segments, length = _segment_counts(chunked)
    h0 = chunked.query.new_empty(batch, heads, num_segments, dim, width, dtype=torch.float32)
    h0[:, :, 0] = 0.0 if initial_state is None else initial_state
    is_delta = chunked.factors.A_inv is not None
    transitions = h0.new_empty(batch, heads, num_segments, *((dim, dim) if is_delta else ()))
    segments = Segments(h0, transitions, length)
    if num_segments > 1:
        grid = (heads * _state_programs(chunked), num_segments - 1, batch)
        segment_state_kernel[grid](
            *chunked.arguments, h0, transitions, *chunked.counts, *segments.counts,
            **chunked.constants, num_warps=chunked.num_warps, num_stages=3 if dim <= 128 else 2,
        )  # fmt: skip
        pass_states(chunked, h0, transitions, reverse=False)
    return segments


def pass_states(chunked: ChunkedInputs, states: Tensor, transitions: Tensor, reverse: bool) -> None:
    """Turn what each segment adds to a state into that state, in place; see `pass_states_kernel`.

    With `reverse` the states are gradients, and go from the last segment to the first.
    """
    from ahn.ops.chunk_scan.triton.forward import pass_states_kernel

    batch, heads, num_segments, _, width = states.shape
    if num_segments > 2:
        constants = {name: chunked.constants[name] for name in ("DELTA", "K", "V", "BK")}
        grid = (-(-width // 32), batch * heads)
        pass_states_kernel[grid](
            states, transitions, num_segments, REVERSE=reverse, BV=32, num_warps=8, **constants
        )


def _state_programs(chunked: ChunkedInputs) -> int:
    """Programs for one head and segment: blocks of the state's columns, and of its transition's."""
    dim = chunked.state_shape[2]
    is_delta = chunked.factors.A_inv is not None
    return chunked.value_blocks + (-(-dim // BLOCK_V) if is_delta else 0)


def _segment_counts(chunked: ChunkedInputs) -> tuple[int, int]:
    """Number of segments, chunks of a segment."""
    device, num_sms = chunked.query.device, 1
    if device.type == "cuda":
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    most = MAX_SEGMENTS if chunked.state_shape[2] <= LARGEST_PASSED else 2
    most = min(most, chunked.num_chunks)
    heads = chunked.state_shape[0] * chunked.state_shape[1]
    programs = (chunked.value_blocks, _state_programs(chunked))
    return _fastest_counts(
        min(most, chunked.num_chunks), chunked.num_chunks, heads, *programs, num_sms
    )


@lru_cache(maxsize=1024)
def _fastest_counts(
    most: int, num_chunks: int, heads: int, output_programs: int, state_programs: int, num_sms: int
) -> tuple[int, int]:
    """Those of at most `most` segments with the least time, counting rounds of programs.

    For one head and segment the output phase takes `output_programs`, the state's
    `state_programs`; the GPU has `num_sms` multiprocessors.
    """

    def rounds(programs: int) -> int:
        return -(-heads * programs // (PROGRAMS_PER_SM * num_sms))

    def time(count: int) -> float:
        chunk = OUTPUT_COST * rounds(count * output_programs) + rounds((count - 1) * state_programs)
        return -(-num_chunks // count) * chunk + PASS_COST * (count > 1) * count

    best = min(range(1, most + 1), key=time)
    length = -(-num_chunks // best)
    return -(-num_chunks // length), length
