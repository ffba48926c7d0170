"""KL and cross-entropy of logits with their gradient, in two passes over them."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["logit_losses", "why_not_fused_losses"]

BLOCK = 2048  # logits at a time


def why_not_fused_losses(logits: Tensor) -> str | None:
    """What the kernel would need; None where it can run."""
    if not logits.is_cuda or find_spec("triton") is None:
        return f"a CUDA device and triton, got {logits.device}"
    if logits.dtype == torch.float64:
        return "at most float32, got float64"
    return None


def logit_losses(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    kl_counts: Tensor | None,
    weights: tuple[float, float],
    wanted: bool,
) -> Tensor:
    """Sums over tokens of KL(teacher || student) and both cross-entropies, `[3]` float32.

    Where `wanted`, the student's logits are overwritten by the gradient of the weighted sum.

    Args:
        student, teacher: logits `[N, V]`, contiguous, of one dtype up to float32.
        targets: `[N]`, negative where there is none; None leaves cross-entropies at 0.
        kl_counts: `[N]` bool, tokens whose KL counts; None counts all.
        weights: of KL and of the student's cross-entropy.
    """
    from ahn.ops.logit_losses.triton import logit_losses_kernel

    sums = student.new_empty(len(student), 3, dtype=torch.float32)
    logit_losses_kernel[(len(student),)](
        student, teacher, targets, kl_counts, sums, *weights, VOCABULARY=student.shape[1],
        HAS_TARGETS=targets is not None, HAS_COUNTS=kl_counts is not None, WANTED=wanted,
        BLOCK=min(BLOCK, 1 << (student.shape[1] - 1).bit_length()),
    )  # fmt: skip
    return sums.sum(0)
