"""Train a memory by distilling the frozen model's own full attention (arXiv 2510.07318, 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ahn.attach import of_model
from ahn.attach.saving import is_memory
from ahn.calls import FULL
from ahn.training.losses import kl_from_hidden


def distillation_loss(
    model: PreTrainedModel,
    input_ids: Tensor,
    labels: Tensor | None = None,
    *,
    window: int | None = None,
    num_sinks: int | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Mean KL(teacher || student) over the tokens beyond the budget, in nats.

    The teacher is the model itself with full attention, without gradient.

    Args:
        input_ids: `[B, T]`.
        labels: `[B, T]`; as in the released code, token t counts where `labels[t]` is not -100.
        window, num_sinks: for this batch; None takes the attached ones.
        attention_mask, position_ids: `[B, T]`, of padded or packed rows.

    Returns:
        A scalar; 0 where no token counts.

    Raises:
        ValueError: nothing is attached, or the model changes its logits after the head.
    """
    _check_plain_head(model)
    settings = of_model(model).config
    window = settings.window if window is None else window
    num_sinks = settings.num_sinks if num_sinks is None else num_sinks
    decoder = model.get_decoder()
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "use_cache": False,
    }
    with torch.no_grad():
        teacher = decoder(**inputs, ahn_mode=FULL).last_hidden_state
    student = decoder(**inputs, ahn_window=window, ahn_sinks=num_sinks).last_hidden_state
    counted = _positions(input_ids, attention_mask, position_ids) >= window + num_sinks
    if labels is not None:
        counted = counted & (labels != -100)
    total = kl_from_hidden(model.get_output_embeddings(), student[counted], teacher[counted])
    return total / counted.sum().clamp(min=1)


def distill(
    model: PreTrainedModel,
    batches: Iterable[Tensor],
    *,
    total_steps: int,
    learning_rate: float = 1e-2,
    map_rate: float = 0.03,
    warmup: float = 0.1,
    weight_decay: float = 0.1,
    on_step: Callable[[int, float], None] | None = None,
    window: int | None = None,
    num_sinks: int | None = None,
    autocast: torch.dtype | None = None,
) -> list[float]:
    """Train the attached memory, and nothing else, on `[B, T]` batches of token ids.

    AdamW with a linear warm-up over the first share `warmup` of the steps, then a cosine to 0.

    Args:
        batches: at least `total_steps` of them; rows longer than the budget.
        learning_rate: of gates, decays, steps and norms.
        map_rate: learning rate of the head-wise linear maps (`o_proj`, `q_proj`) over that of the
            rest. Their gradients are the noisiest: at the rate of the rest, a short run ends
            worse than it began. The rest has a long way to go: a fresh cell forgets within a few
            tokens, and remembering thousands takes decays that are orders of magnitude slower.
        autocast: dtype the base computes in; None is its own. The memory's recurrence stays in
            float32.
        on_step: called with the step's number, from 1, and its loss.

    Returns:
        The loss of every step.

    Raises:
        ValueError: too few batches.
    """
    parameters = memory_parameters(model)
    groups = _groups(parameters, learning_rate, map_rate, weight_decay)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, total_steps, warmup)
    )
    losses: list[float] = []
    with only_trainable(model, parameters.values()):
        for step, batch in zip(range(1, total_steps + 1), batches):
            ids = batch.to(model.device)
            with torch.autocast(ids.device.type, autocast, enabled=autocast is not None):
                loss = distillation_loss(model, ids, window=window, num_sinks=num_sinks)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if on_step is not None:
                on_step(step, losses[-1])
    if len(losses) < total_steps:
        raise ValueError(f"distill: expected {total_steps} batches, got {len(losses)}")
    return losses


def memory_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    of_model(model)
    return {name: parameter for name, parameter in model.named_parameters() if is_memory(name)}


def warmup_cosine(step: int, total_steps: int, warmup: float) -> float:
    """Share of the learning rate at `step`, from 0: linear up, then a cosine down to 0."""
    rising = max(1, round(warmup * total_steps))
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, total_steps - rising)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@contextmanager
def only_trainable(model: nn.Module, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients for the chosen parameters alone, as before afterwards."""
    wanted = {id(parameter) for parameter in chosen}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def _groups(
    parameters: dict[str, nn.Parameter],
    learning_rate: float,
    map_rate: float,
    weight_decay: float,
) -> list[dict]:
    """Head-wise maps, gate projections, and vectors, which do not decay."""
    found: dict[int, list[nn.Parameter]] = {1: [], 2: [], 3: []}
    for parameter in parameters.values():
        found[max(1, parameter.ndim)].append(parameter)
    return [
        {"params": found[3], "lr": learning_rate * map_rate, "weight_decay": weight_decay},
        {"params": found[2], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": found[1], "lr": learning_rate, "weight_decay": 0.0},
    ]


def _positions(ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
    if positions is not None:
        return positions.expand_as(ids)
    if mask is not None:
        return mask.long().cumsum(1) * mask - 1  # padding at -1 counts nowhere
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)


def _check_plain_head(model: PreTrainedModel) -> None:
    config = model.config.get_text_config(decoder=True)
    for name in ("logits_scaling", "logit_scale", "final_logit_softcapping"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"distillation: expected logits straight from the head, got {name}="
                f"{getattr(config, name)}"
            )
