"""KL and cross-entropy of logits with their gradient: the kernel on a GPU, else PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops import logit_losses as fused
from ahn.ops.logit_losses import why_not_fused_losses
from ahn.training.losses.registry import IGNORE


def logit_losses(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    kl_counts: Tensor | None,
    weights: tuple[float, float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """KL, cross-entropy of student and teacher `[3]`; their gradient by the student's logits.

    Where the kernel runs it overwrites the student's logits by the gradient.

    Args:
        student, teacher: logits `[N, V]`.
        targets: `[N]`, -100 where there is none; None leaves the cross-entropies at 0.
        kl_counts: `[N]` bool, tokens of the KL; None takes all.
        weights: of KL and of the student's cross-entropy.
        with_gradient: whether the gradient is asked for.
    """
    given = (student, teacher, targets, kl_counts, weights, with_gradient)
    if why_not_fused_losses(student):
        return _plain(*given)
    return fused.logit_losses(*given), student


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of each row of log-probabilities `[N, V]`: `[N]`."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) of each row of `[N, V]`, 0 where the target is -100: `[N]`."""
    wanted = targets.clamp(min=0)[:, None]
    picked = log_probabilities.gather(1, wanted)[:, 0]
    return torch.where(targets == IGNORE, 0.0, -picked)


def _plain(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    counts: Tensor | None,
    weights: tuple[float, float],
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    """KL, cross-entropy of the student and of the teacher `[3]`; gradient by the logits."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    own, target = (x.to(dtype).log_softmax(-1) for x in (student, teacher))
    kl = kl_divergence(own, target)
    kl = (kl if counts is None else torch.where(counts, kl, 0.0)).sum()
    ce = teacher_ce = torch.zeros_like(kl)
    if labels is not None:
        ce, teacher_ce = (cross_entropy(x, labels).sum() for x in (own, target))
    sums = torch.stack([kl, ce, teacher_ce])
    if not wanted:
        return sums, None
    return sums, _logit_gradient(own, target, labels, counts, weights).to(student.dtype)


def _logit_gradient(
    own: Tensor,
    target: Tensor,
    labels: Tensor | None,
    counts: Tensor | None,
    weights: tuple[float, float],
) -> Tensor:
    """Gradient of the weighted sum by the student's logits `[N, V]`; overwrites both inputs."""
    kl, ce = weights
    probability, target = own.exp_(), target.exp_()
    per_kl = probability.new_full((len(own), 1), kl)
    if counts is not None:
        per_kl = torch.where(counts[:, None], per_kl, 0.0)
    per_ce = torch.zeros_like(per_kl)
    if labels is not None and ce:
        per_ce = torch.where(labels[:, None] == IGNORE, per_ce, ce)
    slope = probability.mul_(per_kl + per_ce).sub_(target.mul_(per_kl))
    if labels is not None and ce:
        slope.scatter_add_(1, labels.clamp(min=0)[:, None], -per_ce)
    return slope
