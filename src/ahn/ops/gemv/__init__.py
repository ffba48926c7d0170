"""Linear maps of one new token a row, with the norm before and the sum after."""

from ahn.ops.gemv.api import linear_add, norm_linear, norm_net, norm_swiglu
from ahn.ops.gemv.weights import Linear, Norm, concat_linear

__all__ = [
    "Linear",
    "Norm",
    "concat_linear",
    "linear_add",
    "norm_linear",
    "norm_net",
    "norm_swiglu",
]
