"""KL divergence and cross-entropies of logits in plain PyTorch, with their gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def logit_losses(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    kl_counts: Tensor | None,
    weights: tuple[float, float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """`ahn.ops.logit_losses` on any device; the logits stay as they are."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    log_p, log_q = (x.to(dtype).log_softmax(-1) for x in (student, teacher))
    kl = kl_divergence(log_p, log_q)
    kl = (kl if kl_counts is None else torch.where(kl_counts, kl, 0.0)).sum()
    ce = teacher_ce = torch.zeros_like(kl)
    if targets is not None:
        ce, teacher_ce = (cross_entropy(x, targets).sum() for x in (log_p, log_q))
    sums = torch.stack([kl, ce, teacher_ce])
    if not with_gradient:
        return sums, None
    return sums, _gradient(log_p, log_q, targets, kl_counts, weights).to(student.dtype)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) of each row of log-probabilities `[N, V]`: `[N]`."""
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def cross_entropy(log_p: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) of each row of `[N, V]`, 0 where the target is negative: `[N]`."""
    picked = log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(targets < 0, 0.0, -picked)


def _gradient(
    log_p: Tensor,
    log_q: Tensor,
    targets: Tensor | None,
    kl_counts: Tensor | None,
    weights: tuple[float, float],
) -> Tensor:
    """Gradient of the weighted sum by the student's logits `[N, V]`; overwrites both inputs."""
    kl, ce = weights
    p, q = log_p.exp_(), log_q.exp_()
    per_kl = p.new_full((len(p), 1), kl)
    if kl_counts is not None:
        per_kl = torch.where(kl_counts[:, None], per_kl, 0.0)
    per_ce = torch.zeros_like(per_kl)
    if targets is not None and ce:
        per_ce = torch.where(targets[:, None] < 0, per_ce, ce)
    gradient = p.mul_(per_kl + per_ce).sub_(q.mul_(per_kl))
    if targets is not None and ce:
        gradient.scatter_add_(1, targets.clamp(min=0)[:, None], -per_ce)
    return gradient
