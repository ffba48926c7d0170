"""Losses of distillation: pure functions of logits and hidden states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ahn.ops.backends import choose
from ahn.ops.logit_losses import logit_losses

IGNORE = -100  # label of a token that does not count, as everywhere in transformers
LOSS_CHUNK = 512  # tokens whose logits exist at a time
FUSED_LOSS_CHUNK = 2048  # the same where only half-precision logits exist: fills the device


class LossWeights(NamedTuple):
    """What each loss weighs in the total; 0 leaves it out.

    Attributes:
        kl: KL(teacher || student) of the next token.
        ce: cross-entropy of the labels.
        distill: distance of the streams after every layer.
    """

    kl: float = 1.0
    ce: float = 0.0
    distill: float = 0.0


class HeadLosses(NamedTuple):
    """Sums over tokens, in nats; float32 scalars (float64 for float64 inputs)."""

    total: Tensor  # weighted sum; carries the gradient
    kl: Tensor
    ce: Tensor  # of the student
    teacher_ce: Tensor


def layer_distance(student: Tensor, teacher: Tensor, normalized: bool = False) -> Tensor:
    """Squared distance of hidden states `[N, D]`, averaged over D, summed over N: a scalar.

    Args:
        normalized: divide each token's by the teacher's mean square, so that layers whose hidden
            states are large do not outweigh the others.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    teacher = teacher.to(dtype)
    distance = (student.to(dtype) - teacher).square().mean(-1)
    if normalized:
        distance = distance / teacher.square().mean(-1).clamp(min=1e-12)
    return distance.sum()


def head_losses(
    head: nn.Module,
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None = None,
    kl_counts: Tensor | None = None,
    *,
    weights: LossWeights | None = None,
    chunk: int | None = None,
    kernels: str = "auto",
) -> HeadLosses:
    """KL and cross-entropy through a frozen head, without the logits of all tokens at once.

    The gradient of each piece is made while its logits exist, so that the head is applied three
    times to a token in training (teacher, student, gradient) and nothing `[N, V]` is ever held.

    Args:
        head: the language-model head, called as a module (sharding and offloading hooks run).
        student, teacher: `[N, D]` last hidden states; gradients flow to the student alone.
        targets: `[N]` next tokens, -100 where there is none; None leaves cross-entropies at 0.
        kl_counts: `[N]` bool, tokens whose KL counts; None counts all.
        weights: of KL and cross-entropy in `total`.
        chunk: tokens per piece; None chooses.
        kernels: of the losses, `auto`, `torch` or `triton`, see `ahn.ops.backends`.

    Raises:
        ValueError: the head is trained, or the loss asks for targets and has none.
    """
    weights = weights or LossWeights()
    if any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError("head: expected a frozen language-model head, got one that is trained")
    if targets is None and weights.ce:
        raise ValueError("ce: expected labels, got none")
    kl, ce = weights.kl, weights.ce
    if chunk is None:
        is_plain = choose("logit_losses", kernels, student) == "torch"
        chunk = LOSS_CHUNK if is_plain else FUSED_LOSS_CHUNK
    options = ((kl, ce), chunk, kernels)
    sums = _FusedHead.apply(student, teacher.detach(), head, targets, kl_counts, *options)
    return HeadLosses(*sums)


class _FusedHead(torch.autograd.Function):
    """Losses and the gradient of their weighted sum, piece by piece."""

    @staticmethod
    def forward(ctx, student, teacher, head, targets, kl_counts, weights, chunk, kernels):
        dtype = torch.promote_types(student.dtype, torch.float32)
        sums = student.new_zeros(3, dtype=dtype)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(student) if wanted else None
        for first in range(0, len(student), chunk):
            piece = slice(first, first + chunk)
            labels = None if targets is None else targets[piece]
            counts = None if kl_counts is None else kl_counts[piece]
            to = None if gradient is None else gradient[piece]
            tokens = (student[piece], teacher[piece], labels, counts)
            sums += _piece(head, *tokens, weights, to, kernels)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*(parts := sums.unbind()))
        # A weight of 0 leaves a loss out, even an infinite one.
        total = sum(w * x for w, x in zip(weights, parts) if w) + torch.zeros_like(parts[0])
        return (total, *parts)

    @staticmethod
    def backward(ctx, total, *_):
        (gradient,) = ctx.saved_tensors
        return (gradient * total.to(gradient.dtype), *[None] * 7)


def _piece(
    head: nn.Module,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    counts: Tensor | None,
    weights: tuple[float, float],
    gradient: Tensor | None,
    kernels: str,
) -> Tensor:
    """Sums of the losses of some tokens `[3]`, whose logits exist in here alone.

    Args:
        gradient: takes that by the student's hidden states, where it is wanted.
    """
    wanted = gradient is not None
    with torch.set_grad_enabled(wanted):
        hidden = student.detach().requires_grad_(wanted)
        logits = head(hidden)
    with torch.no_grad():
        both = (logits.detach(), head(teacher))
        sums, slope = logit_losses(*both, labels, counts, weights, wanted, kernels=kernels)
    if gradient is not None:
        gradient.copy_(torch.autograd.grad(logits, hidden, slope)[0])
    return sums
