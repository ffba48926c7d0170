"""Norm, output gate and linear map of what the queries read from a state."""

from ahn.ops.gated_norm.api import gated_norm, gated_norm_linear, one_pass_unsupported_reason
from ahn.ops.gated_norm.cell import EPS, CellSpec, gates_of
from ahn.ops.gated_norm.reference import gated_rms_norm, headwise_linear, product_dtype

__all__ = [
    "EPS",
    "CellSpec",
    "gated_norm",
    "gated_norm_linear",
    "gated_rms_norm",
    "gates_of",
    "headwise_linear",
    "one_pass_unsupported_reason",
    "product_dtype",
]
