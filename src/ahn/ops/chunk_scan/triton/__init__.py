"""Triton kernels of `ahn.ops.chunk_scan`: chunks, their states, what is read, gradients.

Shapes: B rows, T tokens, H query heads, G key-value heads, K and V head sizes (PADDED: K as a
power of two), N chunks of CHUNK tokens, P segments of `per_segment` chunks. A program holds some
COLUMNS of one head's state in registers, `[PADDED, COLUMNS]`.

Every kernel takes the text and its chunks as `Text.arguments` gives them:
    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]` and their strides;
    query_scale, key_scale, strength, total, each `[B, H, N CHUNK]` float32;
    scores, solved, each `[B, H, N, CHUNK, CHUNK]`; see `ahn.ops.chunk_scan.text.Chunks`.
"""
