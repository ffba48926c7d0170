"""Phase 3 of the forward: the outputs of all tokens, and the final state."""

from __future__ import annotations

from torch import Tensor

from ahn.ops.chunk_scan.prepare import ChunkedInputs
from ahn.ops.chunk_scan.segments import Segments


def chunk_outputs(chunked: ChunkedInputs, segments: Segments) -> tuple[Tensor, Tensor]:
    """out `[B, T, H, V]` in the dtype of the values, final_state `[B, H, K, V]` float32."""
    from ahn.ops.chunk_scan.triton.forward import output_kernel

    batch, heads, dim, width = chunked.state_shape
    out = chunked.value.new_empty(batch, chunked.query.shape[1], heads, width)
    ht = segments.h0.new_empty(batch, heads, dim, width)
    output_kernel[(heads * chunked.value_blocks, segments.h0.shape[2], batch)](
        *chunked.arguments, segments.h0, out, ht, *chunked.counts, *segments.counts,
        **chunked.constants, num_warps=chunked.num_warps, num_stages=2,
    )  # fmt: skip
    return out, ht
