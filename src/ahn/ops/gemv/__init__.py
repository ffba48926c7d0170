"""Linear maps of one new token a row, with the norm before and the sum after."""

from ahn.ops.gemv.api import Linear, Norm, concat_linear, linear_add, norm_linear, norm_swiglu

__all__ = [
    "Linear",
    "Norm",
    "concat_linear",
    "linear_add",
    "norm_linear",
    "norm_swiglu",
]
