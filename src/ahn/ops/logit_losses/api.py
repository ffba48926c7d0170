"""KL divergence and cross-entropies of logits: contract and choice of implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.backends import (
    Backend,
    choose,
    device_unsupported_reason,
    dtype_unsupported_reason,
    register,
)
from ahn.ops.logit_losses import reference


def logit_losses(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    kl_counts: Tensor | None,
    weights: tuple[float, float],
    with_gradient: bool,
    *,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Sums over tokens of KL(teacher || student) and of both cross-entropies, in nats.

    Args:
        student, teacher: logits `[N, V]`, contiguous, of one dtype. The gradient may be written
            over the student's.
        targets: `[N]`, negative where there is none; None leaves cross-entropies at 0.
        kl_counts: `[N]` bool, tokens whose KL counts; None counts all.
        weights: of KL and of the student's cross-entropy in the gradient.
        with_gradient: whether the gradient is asked for.
        kernels: `auto`, `torch` or `triton`, see `ahn.ops.backends`.

    Returns:
        `[3]`: KL, cross-entropy of the student and of the teacher, float32, or float64 for float64
        logits; and the gradient of the weighted sum `[N, V]` in the logits' dtype, or None.

    Raises:
        ValueError: the kernels asked for cannot run here.
    """
    if choose("logit_losses", kernels, student) == "torch":
        run = reference.logit_losses
    else:
        from ahn.ops.logit_losses import triton

        run = triton.logit_losses
    return run(student, teacher, targets, kl_counts, weights, with_gradient)


def _triton_unsupported_reason(logits: Tensor) -> str | None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    return device_unsupported_reason(logits) or dtype_unsupported_reason(dtypes, logits)


register(Backend("logit_losses", "triton", 1, _triton_unsupported_reason))
