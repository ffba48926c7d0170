"""Triton kernel of the losses on logits; see `ahn.ops.logit_losses`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # logits at a time
LOWEST = tl.constexpr(-1e30)  # stands for no logit: finite, so that no difference is NaN


def logit_losses(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    kl_counts: Tensor | None,
    weights: tuple[float, float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """`ahn.ops.logit_losses` up to float32; the gradient overwrites the student's logits."""
    sums = student.new_empty(len(student), 3, dtype=torch.float32)
    logit_losses_kernel[(len(student),)](
        student, teacher, targets, kl_counts, sums, *weights, VOCABULARY=student.shape[1],
        HAS_TARGETS=targets is not None, HAS_COUNTS=kl_counts is not None,
        WITH_GRADIENT=with_gradient, BLOCK=min(BLOCK, 1 << (student.shape[1] - 1).bit_length()),
    )  # fmt: skip
    return sums.sum(0), student if with_gradient else None


@triton.jit
def logit_losses_kernel(
    student, teacher, targets, counts, sums, per_kl, per_ce, VOCABULARY: tl.constexpr,
    HAS_TARGETS: tl.constexpr, HAS_COUNTS: tl.constexpr, WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Losses of one token, and where asked for their gradient in place of its logits."""
    row = tl.program_id(0).to(tl.int64)
    student += row * VOCABULARY
    teacher += row * VOCABULARY
    target = tl.load(targets + row) if HAS_TARGETS else -1
    counted = tl.load(counts + row) != 0 if HAS_COUNTS else True
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), LOWEST, tl.float32)
    top_t = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    total_t = tl.zeros((BLOCK,), tl.float32)
    picked = tl.zeros((BLOCK,), tl.float32)
    picked_t = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, VOCABULARY, BLOCK):
        i = first + lane
        s = tl.load(student + i, i < VOCABULARY, LOWEST).to(tl.float32)
        t = tl.load(teacher + i, i < VOCABULARY, LOWEST).to(tl.float32)
        higher, higher_t = tl.maximum(top, s), tl.maximum(top_t, t)
        total = total * tl.exp(top - higher) + tl.exp(s - higher)
        total_t = total_t * tl.exp(top_t - higher_t) + tl.exp(t - higher_t)
        top, top_t = higher, higher_t
        picked += tl.where(i == target, s, 0.0)
        picked_t += tl.where(i == target, t, 0.0)
    highest, highest_t = tl.max(top, 0), tl.max(top_t, 0)
    lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    lse_t = highest_t + tl.log(tl.sum(total_t * tl.exp(top_t - highest_t), 0))
    labelled = target >= 0
    by_kl = tl.where(counted, per_kl, 0.0)
    by_ce = tl.where(labelled, per_ce, 0.0)
    divergence = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, VOCABULARY, BLOCK):
        i = first + lane
        s = tl.load(student + i, i < VOCABULARY, LOWEST).to(tl.float32) - lse
        t = tl.load(teacher + i, i < VOCABULARY, LOWEST).to(tl.float32) - lse_t
        p, q = tl.exp(s), tl.exp(t)
        divergence += tl.where(i < VOCABULARY, q * (t - s), 0.0)
        if WITH_GRADIENT:
            gradient = p * (by_kl + by_ce) - q * by_kl - tl.where(i == target, by_ce, 0.0)
            tl.store(student + i, gradient.to(student.dtype.element_ty), i < VOCABULARY)
    tl.store(sums + row * 3, tl.where(counted, tl.sum(divergence, 0), 0.0))
    tl.store(sums + row * 3 + 1, tl.where(labelled, lse - tl.sum(picked, 0), 0.0))
    tl.store(sums + row * 3 + 2, tl.where(labelled, lse_t - tl.sum(picked_t, 0), 0.0))
