"""The (gated) delta rule and Mamba2's SSD over chunks of 64 tokens, by Triton kernels.

The forward has three phases. The delta rule follows arXiv 2412.06464, section 3.3.
1. Intra-chunk factors (`prepare`): for every chunk at once, the running log decay `g_cumsum`, the
   inverse `A_inv` of the chunk's triangular system and the masked product `A_qk` of its queries
   and keys. None of these depends on the state.
2. Inter-chunk state pass (`segments`): the chunks are grouped into segments, so that a long
   sequence fills the GPU. Each segment computes how it changes a state; a pass over segments then
   gives the state `h0` that each one starts from.
3. Output (`forward`): every segment walks over its chunks from `h0`, computes the outputs and
   updates the state. The last segment writes the final state.

The backward (`backward`) has the same phases in reverse order.
1. Recomputation: the forward's walk again, which this time stores the state `h` that each chunk
   starts from and the writes `u` of its tokens.
2. Inter-chunk gradient pass: the gradient `dh` of the state goes from the last chunk to the first,
   over segments as in the forward.
3. Intra-chunk gradients: from these, for every chunk at once, the gradients of queries, keys,
   values, beta and the log decay.
"""

from ahn.ops.chunk_scan.api import scan
from ahn.ops.chunk_scan.prepare import Rule

__all__ = [
    "Rule",
    "scan",
]
