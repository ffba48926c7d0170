"""A gated MLP with frozen weights."""

from ahn.ops.gated_mlp.api import gated_mlp

__all__ = ["gated_mlp"]
