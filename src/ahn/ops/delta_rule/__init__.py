"""The (gated) delta rule."""

from ahn.ops.delta_rule.api import delta_rule
from ahn.ops.delta_rule.reference import chunk_delta_rule, recurrent_delta_rule

__all__ = [
    "chunk_delta_rule",
    "delta_rule",
    "recurrent_delta_rule",
]
