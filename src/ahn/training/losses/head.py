"""Losses on logits through a frozen language-model head, one chunk of tokens after the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ahn.ops.backends import choose
from ahn.ops.logit_losses import logit_losses
from ahn.training.losses.registry import FUSED, IGNORE, TARGETS, Loss, LossOutput, weighted_losses

LOSS_CHUNK = 512  # tokens whose logits exist at a time
FUSED_LOSS_CHUNK = 2048  # the same where only half-precision logits exist: fills the device


class _Tokens(NamedTuple):
    """Tokens of the head: hidden states `[N, D]` or logits `[N, V]`, and which losses they have."""

    student: Tensor
    teacher: Tensor
    targets: Tensor | None
    labelled: Tensor | None

    def chunk(self, first: int, length: int) -> _Tokens:
        """At most `length` tokens from the token `first` on."""
        return _Tokens(*(None if x is None else x[first : first + length] for x in self))  # type: ignore[arg-type]


class _Weighted(NamedTuple):
    """The losses on logits: those that are computed in one pass, then the registered functions."""

    fused: tuple[float, float]
    functions: dict[str, Loss]

    @classmethod
    def of(cls, losses: Mapping[str, Loss]) -> _Weighted:
        kl, ce = (losses[name].weight if name in losses else 0.0 for name in ("kl", "ce"))
        return cls((kl, ce), {name: loss for name, loss in losses.items() if name not in FUSED})

    def per_sum(self) -> list[float]:
        """A weight for each sum: KL, the student's and the teacher's cross-entropy, the rest."""
        return [*self.fused, 0.0, *(loss.weight for loss in self.functions.values())]


def head_losses(
    head: nn.Module,
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None = None,
    labelled: Tensor | None = None,
    *,
    losses: Mapping[str, Loss] | None = None,
    chunk: int | None = None,
    kernels: str = "auto",
) -> LossOutput:
    """Losses on logits through a frozen head, without the logits of all tokens at once.

    The gradient of each chunk is computed while its logits exist. So training applies the head
    three times to a token (teacher, student, gradient), and no tensor is `[N, V]`.

    Args:
        head: the language-model head, called as a module (sharding and offloading hooks run).
        student, teacher: `[N, D]` last hidden states; gradients flow to the student alone.
        targets: `[N]` next tokens, -100 where there is none; None leaves cross-entropies at 0.
        labelled: `[N]` bool, tokens of the losses on logits; None takes all.
        losses: on logits or targets; their weights are those of the sums. None is KL alone.
        chunk: tokens at a time; None chooses.
        kernels: of the losses, `auto`, `torch` or `triton`, see `ahn.ops.backends`.

    Returns:
        The weighted sum, and sums in float32 (float64 for float64 inputs): `kl`, `ce`,
        `teacher_ce`, and every other loss by its name.

    Raises:
        ValueError: the head is trained, or a loss needs targets and has none.
    """
    losses = weighted_losses({"kl": 1.0}) if losses is None else losses
    _check(head, losses, has_targets=targets is not None)
    weighted = _Weighted.of(losses)
    in_pytorch = weighted.functions or choose("logit_losses", kernels, student) == "torch"
    tokens = _Tokens(student, teacher.detach(), targets, labelled)
    chunk = chunk or (LOSS_CHUNK if in_pytorch else FUSED_LOSS_CHUNK)
    total, *sums = _FrozenHead.apply(*tokens, head, weighted, chunk, kernels)
    return LossOutput(total, dict(zip([*FUSED, *weighted.functions], sums)))


def _check(head: nn.Module, losses: Mapping[str, Loss], *, has_targets: bool) -> None:
    if any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError("head: expected a frozen language-model head, got one that is trained")
    for name, loss in losses.items():
        if not has_targets and loss.on == TARGETS and (loss.weight or loss.function):
            raise ValueError(f"{name}: expected labels, got none")


class _FrozenHead(torch.autograd.Function):
    """The sums of the losses, and the gradient of their weighted sum, chunk by chunk."""

    @staticmethod
    def forward(ctx, student, teacher, targets, labelled, head, weighted, chunk, kernels):
        tokens, weights = _Tokens(student, teacher, targets, labelled), weighted.per_sum()
        dtype = torch.promote_types(student.dtype, torch.float32)
        sums = student.new_zeros(len(weights), dtype=dtype)
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        for first in range(0, len(student), chunk):
            to = None if gradient is None else gradient[first : first + chunk]
            sums += _chunk_losses(head, tokens.chunk(first, chunk), weighted, to, kernels)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*(parts := sums.unbind()))
        # A weight of 0 leaves a loss out, even an infinite one.
        total = sum(w * x for w, x in zip(weights, parts) if w) + torch.zeros_like(parts[0])
        return (total, *parts)

    @staticmethod
    def backward(ctx, total, *_):
        (gradient,) = ctx.saved_tensors
        return (gradient * total.to(gradient.dtype), *[None] * 7)


def _chunk_losses(
    head: nn.Module,
    tokens: _Tokens,
    weighted: _Weighted,
    gradient: Tensor | None,
    kernels: str,
) -> Tensor:
    """Sums of the losses of a chunk, `[losses]`; its logits are freed on return.

    Args:
        gradient: `[N, D]`, filled with the gradient by the student's hidden states; None asks for
            none.
    """
    wanted = gradient is not None
    with torch.set_grad_enabled(wanted):
        hidden = tokens.student.detach().requires_grad_(wanted)
        logits = head(hidden)
    with torch.no_grad():
        tokens = tokens._replace(student=logits.detach(), teacher=head(tokens.teacher))
        # The functions go first: the kernel of the built-in losses overwrites the logits.
        sums, more = _function_losses(tokens, weighted.functions.values(), wanted)
        fused, slope = logit_losses(*tokens, weighted.fused, wanted, kernels=kernels)
        if slope is not None and more is not None:
            slope.add_(more)
    if gradient is not None:
        gradient.copy_(torch.autograd.grad(logits, hidden, slope)[0])
    return torch.cat([fused, torch.stack(sums)]) if sums else fused


def _function_losses(
    tokens: _Tokens, losses: Collection[Loss], wanted: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Sums of registered losses on a chunk's logits; gradient of their weighted sum by those."""
    sums: list[Tensor] = []
    gradient = torch.zeros_like(tokens.student) if wanted and losses else None
    for loss in losses:
        needs_gradient = wanted and loss.weight != 0
        with torch.set_grad_enabled(needs_gradient):
            student = tokens.student.detach().requires_grad_(needs_gradient)
            value = _function_total(loss, tokens._replace(student=student))
        if gradient is not None and needs_gradient:
            gradient += torch.autograd.grad(value, student, torch.full_like(value, loss.weight))[0]
        sums.append(value.detach())
    return sums, gradient


def _function_total(loss: Loss, tokens: _Tokens) -> Tensor:
    """A loss summed over those tokens of a chunk that it is defined on: a scalar."""
    inputs, chosen = [tokens.student, tokens.teacher], tokens.labelled
    if loss.on == TARGETS:
        assert tokens.targets is not None, "head_losses has refused it"
        inputs, chosen = [*inputs, tokens.targets], tokens.targets != IGNORE
    if chosen is not None:
        inputs = [x[chosen] for x in inputs]
    dtype = torch.promote_types(tokens.student.dtype, torch.float32)
    return loss.total(*(x.to(dtype) if x.is_floating_point() else x for x in inputs))
