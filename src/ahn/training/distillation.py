"""What distillation makes of one batch: which tokens count, and the losses on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.hf.attached_state import attached_state
from ahn.training.losses import IGNORE, LossWeights, head_losses, layer_distance
from ahn.training.two_streams import two_streams


class Batch(NamedTuple):
    """Token ids of a batch and what is known of them, each `[B, T]`.

    Attributes:
        labels: -100 where a token does not count; None counts all.
        position_ids: start again at every document of packed rows; None for one document a row.
        attention_mask: of left-padded rows. Padding on the right needs none, its labels say it.
    """

    input_ids: Tensor
    labels: Tensor | None = None
    position_ids: Tensor | None = None
    attention_mask: Tensor | None = None

    def positions(self) -> Tensor:
        """Of every token in its document, from 0, `[B, T]`; padding on the left has -1."""
        if self.position_ids is not None:
            return self.position_ids.expand_as(self.input_ids)
        if self.attention_mask is not None:
            return self.attention_mask.long().cumsum(1) * self.attention_mask - 1
        index = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return index.expand_as(self.input_ids)


class Counts(NamedTuple):
    """Tokens that the losses are averaged over; of all processes and accumulated batches."""

    kl: float
    ce: float


class Losses(NamedTuple):
    """Loss to minimise, and sums over the counted tokens to report: scalars, in nats."""

    loss: Tensor
    kl: Tensor
    ce: Tensor
    teacher_ce: Tensor
    distill: Tensor


def counted(batch: Batch, budget: int) -> tuple[Tensor, Tensor]:
    """Tokens whose KL counts `[B, T]` bool, and what each is to predict, `[B, T]`.

    Up to the budget teacher and student are equal, so only tokens beyond it count. As in the
    released code the KL of token t counts where `labels[t]` is not -100; its cross-entropy counts
    where the next token of its document is labelled (else the target is -100).
    """
    positions = batch.positions()
    beyond = positions >= budget
    labels = batch.input_ids if batch.labels is None else batch.labels
    targets = torch.full_like(labels, IGNORE)
    follows = beyond[:, :-1] & (positions[:, 1:] == positions[:, :-1] + 1)
    targets[:, :-1] = torch.where(follows, labels[:, 1:], IGNORE)
    return beyond & (labels != IGNORE), targets


def count(batch: Batch, budget: int) -> Counts:
    """Number of tokens that count in one batch."""
    kl, targets = counted(batch, budget)
    return Counts(float(kl.sum()), float((targets != IGNORE).sum()))


def distillation(
    model: PreTrainedModel,
    batch: Batch,
    *,
    window: int,
    num_sinks: int,
    weights: LossWeights | None = None,
    counts: Counts | None = None,
    normalized: bool = False,
    checkpointing: bool = True,
) -> Losses:
    """Losses of a batch; the teacher is the model itself with full attention.

    Args:
        model: with a memory attached, in evaluation mode, its head frozen.
        window, num_sinks: for this batch.
        weights: of the losses; None is KL alone.
        counts: what to average over; None counts this batch.
        normalized: see `layer_distance`.
        checkpointing: see `two_streams`.

    Raises:
        ValueError: nothing is attached, or the model changes its logits after the head.
    """
    _check_plain_head(model)
    weights = weights or LossWeights()
    kl_counts, targets = counted(batch, window + num_sinks)
    counts = counts or count(batch, window + num_sinks)
    chosen = (kl_counts | (targets != IGNORE)).flatten().nonzero()[:, 0]
    beyond = kl_counts.flatten().nonzero()[:, 0]

    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        return layer_distance(_rows(student, beyond), _rows(teacher, beyond), normalized)

    student, teacher, distances = two_streams(
        model,
        _inputs(batch),
        window=window,
        num_sinks=num_sinks,
        checkpointing=checkpointing,
        on_layer=distance if weights.distill else None,
    )
    head = head_losses(
        model.get_output_embeddings(),
        _rows(student, chosen),
        _rows(teacher, chosen),
        targets.flatten()[chosen],
        kl_counts.flatten()[chosen],
        weights=LossWeights(weights.kl / max(counts.kl, 1), weights.ce / max(counts.ce, 1)),
    )
    distill = torch.stack(distances).mean() if distances else torch.zeros_like(head.kl)
    loss = head.total + weights.distill / max(counts.kl, 1) * distill
    return Losses(loss, head.kl, head.ce, head.teacher_ce, distill.detach())


def distillation_loss(
    model: PreTrainedModel,
    input_ids: Tensor,
    labels: Tensor | None = None,
    *,
    window: int | None = None,
    num_sinks: int | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    checkpointing: bool = True,
) -> Tensor:
    """Mean KL(teacher || student) over the labelled tokens beyond the budget, in nats.

    Args:
        input_ids, labels, attention_mask, position_ids: `[B, T]`, see `Batch`.
        window, num_sinks: for this batch; None takes the attached ones.
        checkpointing: see `two_streams`.

    Returns:
        A scalar; 0 where no token counts.

    Raises ValueError as `distillation`.
    """
    limits = attached_state(model).config.with_budget(window, num_sinks)
    return distillation(
        model,
        Batch(input_ids, labels, position_ids, attention_mask),
        window=limits.window,
        num_sinks=limits.num_sinks,
        checkpointing=checkpointing,
    ).loss


def _inputs(batch: Batch) -> dict[str, Tensor | None]:
    positions = batch.position_ids
    if batch.attention_mask is not None:
        positions = batch.positions().clamp(min=0)
    return {
        "input_ids": batch.input_ids,
        "position_ids": positions,
        "attention_mask": batch.attention_mask,
    }


def _rows(hidden: Tensor, chosen: Tensor) -> Tensor:
    return hidden.flatten(0, 1).index_select(0, chosen)


def _check_plain_head(model: PreTrainedModel) -> None:
    config = model.config.get_text_config(decoder=True)
    for name in ("logits_scaling", "logit_scale", "final_logit_softcapping"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"distillation: expected logits straight from the head, got {name}="
                f"{getattr(config, name)}"
            )
