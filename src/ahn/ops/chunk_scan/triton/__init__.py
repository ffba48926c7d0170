"""Triton kernels of `ahn.ops.chunk_scan`, in the notation of flash-linear-attention.

Shapes: B rows, T tokens, H query heads, G key-value heads, K and V head sizes, chunks of BT tokens
(`num_chunks` of them), segments of `segment_chunks` chunks (`num_segments`). BK is K padded to a
power of two. A program holds BV columns of one head's state in registers, `[BK, BV]`.
Prefixes: `i_` is the index of a program or a chunk, `o_` offsets, `m_` a mask, `b_` a tile or
vector in registers, `d` a gradient; names without a prefix are pointers.

Every kernel begins with the arguments of `ChunkedInputs.arguments`:
    q `[B, T, H, K]`, k `[B, T, G, K]`, v `[B, T, G, V]` and their strides;
    query_scale, key_scale, beta, g_cumsum, each `[B, H, num_chunks BT]` float32;
    A_qk, A_inv, each `[B, H, num_chunks, BT, BT]`; see `ahn.ops.chunk_scan.prepare.ChunkFactors`.
g_cumsum is a logarithm to base 2, so that exp2 makes a decay of it.
"""
