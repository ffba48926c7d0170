"""Losses of distillation: pure functions of hidden states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOSS_CHUNK = 1024  # tokens whose logits exist at a time


def kl_from_hidden(
    head: nn.Module, student: Tensor, teacher: Tensor, chunk: int = LOSS_CHUNK
) -> Tensor:
    """Sum over tokens of KL(teacher || student), without the logits of all tokens at once.

    Args:
        head: the language-model head, called as a module (sharding and offloading hooks run).
        student, teacher: `[N, D]` last hidden states; gradients flow to the student alone.
        chunk: tokens per piece; its logits are made again for the backward pass.

    Returns:
        A float32 scalar (float64 for float64 inputs), in nats; 0 where N is 0.
    """
    total = student.new_zeros((), dtype=torch.promote_types(student.dtype, torch.float32))
    for piece, target in zip(student.split(chunk), teacher.split(chunk)):
        total = total + checkpoint(_kl, head, piece, target, use_reentrant=False)
    return total


def _kl(head: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.no_grad():
        target = head(teacher).to(dtype).log_softmax(-1)
    log_probabilities = head(student).to(dtype).log_softmax(-1)
    return F.kl_div(log_probabilities, target, log_target=True, reduction="sum")
