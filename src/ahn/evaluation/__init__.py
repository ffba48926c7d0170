"""How well a model predicts a text of any length."""

from ahn.evaluation.streaming import (
    CHUNK,
    beyond_budget,
    bits_per_byte,
    cache_bytes,
    encode_bytes,
    new_cache,
    stream_likeliest,
    stream_losses,
    token_losses,
)

__all__ = [
    "CHUNK",
    "beyond_budget",
    "bits_per_byte",
    "cache_bytes",
    "encode_bytes",
    "new_cache",
    "stream_likeliest",
    "stream_losses",
    "token_losses",
]
