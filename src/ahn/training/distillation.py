"""Distillation of one batch: the losses of the student against the frozen teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.hf.attached_state import attached_state
from ahn.training.batch import Batch, LossTokens, TokenCounts, loss_tokens
from ahn.training.losses import IGNORE, LAYERS, Loss, LossOutput, head_losses, weighted_losses
from ahn.training.two_streams import two_streams


def distillation(
    model: PreTrainedModel,
    batch: Batch,
    *,
    window: int,
    num_sinks: int,
    losses: Mapping[str, Loss] | None = None,
    counts: TokenCounts | None = None,
    checkpointing: bool = True,
) -> LossOutput:
    """Losses of a batch; the teacher is the model itself with full attention.

    Args:
        model: with a memory attached, in evaluation mode, its head frozen.
        window, num_sinks: of the student, for this batch.
        losses: with their weights, by name; None is KL alone.
        counts: what the losses are averaged over; None takes the tokens of this batch.
        checkpointing: see `two_streams`.

    Returns:
        The weighted sum of the means, and the sums over this batch's tokens by name.

    Raises ValueError where nothing is attached, or the model changes its logits after the head.
    """
    _check_plain_head(model)
    tokens = loss_tokens(batch, window + num_sinks)
    losses = _averaged(losses, counts or tokens.counts())
    on_layers = {name: loss for name, loss in losses.items() if loss.on == LAYERS}
    # `nonzero` waits for the GPU: it comes before the forward, which then runs without a stop.
    index = (tokens.labelled | (tokens.targets != IGNORE)).flatten().nonzero()[:, 0]
    student, teacher, layer_sums = two_streams(
        model,
        batch.decoder_inputs(),
        window=window,
        num_sinks=num_sinks,
        checkpointing=checkpointing,
        on_layer=_layer_losses(on_layers, tokens) if on_layers else None,
    )
    on_logits = {name: loss for name, loss in losses.items() if name not in on_layers}
    output = _logit_losses(model, student, teacher, tokens, index, on_logits)
    return _add_layer_losses(output, on_layers, layer_sums)


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
        A scalar; 0 where no token has a loss.

    Raises ValueError as `distillation`.
    """
    config = attached_state(model).config.with_budget(window, num_sinks)
    return distillation(
        model,
        Batch(input_ids, labels, position_ids, attention_mask),
        window=config.window,
        num_sinks=config.num_sinks,
        checkpointing=checkpointing,
    ).loss


def _averaged(losses: Mapping[str, Loss] | None, counts: TokenCounts) -> dict[str, Loss]:
    """The losses with weights of their sums in place of weights of their means."""
    losses = weighted_losses({"kl": 1.0}) if losses is None else losses
    return {
        name: replace(loss, weight=loss.weight / counts.of(loss.on))
        for name, loss in losses.items()
    }


def _logit_losses(
    model: PreTrainedModel,
    student: Tensor,
    teacher: Tensor,
    tokens: LossTokens,
    index: Tensor,
    losses: Mapping[str, Loss],
) -> LossOutput:
    """Losses on the logits of the tokens of `index`; the head sees no other token."""
    return head_losses(
        model.get_output_embeddings(),
        _select(student, index),
        _select(teacher, index),
        tokens.targets.flatten()[index],
        tokens.labelled.flatten()[index],
        losses=losses,
        kernels=attached_state(model).kernels,
    )


def _layer_losses(
    losses: Mapping[str, Loss], tokens: LossTokens
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of the student's and the teacher's hidden states `[B, T, D]`: sums `[losses]`."""
    index = tokens.labelled.flatten().nonzero()[:, 0]

    def on_layer(student: Tensor, teacher: Tensor) -> Tensor:
        hidden = _select(student, index), _select(teacher, index)
        return torch.stack([loss.total(*hidden) for loss in losses.values()])

    return on_layer


def _add_layer_losses(
    output: LossOutput, losses: Mapping[str, Loss], layer_sums: list[Tensor]
) -> LossOutput:
    """Add the losses on hidden states, each the mean over the layers, to those on logits."""
    loss, sums = output.loss, dict(output.sums)
    for i, name in enumerate(losses):
        value = torch.stack([layer[i] for layer in layer_sums]).mean()
        if losses[name].weight:
            loss = loss + losses[name].weight * value
        sums[name] = value.detach()
    return LossOutput(loss, sums)


def _select(hidden: Tensor, index: Tensor) -> Tensor:
    """Rows `[N, D]` of hidden states `[B, T, D]`, by their index in the flattened batch."""
    return hidden.flatten(0, 1).index_select(0, index)


def _check_plain_head(model: PreTrainedModel) -> None:
    config = model.config.get_text_config(decoder=True)
    for name in ("logits_scaling", "logit_scale", "final_logit_softcapping"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"distillation: expected logits straight from the head, got {name}="
                f"{getattr(config, name)}"
            )
