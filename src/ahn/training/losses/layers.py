"""Losses on the hidden states after every decoder layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.training.losses.registry import LAYERS, register_loss

SMALLEST_MEAN_SQUARE = 1e-12  # a divisor above 0 where the teacher's hidden state is 0


@register_loss("distill", on=LAYERS)
def layer_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of hidden states `[N, D]` over D: `[N]`, float32 at least."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    return (student.to(dtype) - teacher.to(dtype)).square().mean(-1)


def normalized_layer_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`layer_distance` divided by the teacher's mean square, `[N]`.

    Layers whose hidden states are large then do not outweigh the others.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    scale = teacher.to(dtype).square().mean(-1).clamp(min=SMALLEST_MEAN_SQUARE)
    return layer_distance(student, teacher) / scale
