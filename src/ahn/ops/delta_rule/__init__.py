"""The (gated) delta rule."""

from ahn.ops.delta_rule.api import chunk_delta_rule, delta_rule, recurrent_delta_rule

__all__ = [
    "chunk_delta_rule",
    "delta_rule",
    "recurrent_delta_rule",
]
