"""A minimal training loop on one device, without accelerate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ahn.hf.attached_state import attached_state
from ahn.training.batch import Batch
from ahn.training.distillation import distillation_loss
from ahn.training.distiller import memory_parameters, only_trainable
from ahn.training.slots import (
    RATE_FACTOR,
    SCORE_SHARE,
    has_slots,
    keep_rates_positive,
    rate_parameters,
    score_losses,
)
from ahn.training.two_streams import two_stream_layers

MAX_GRAD_NORM = 1.0


def distill(
    model: PreTrainedModel,
    batches: Iterable[Tensor | Batch],
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
    score_share: float = SCORE_SHARE,
) -> list[float]:
    """Train the attached memory, and nothing else, on batches of token ids `[B, T]`.

    The optimizer is AdamW; the learning rate follows `warmup_cosine`.

    Args:
        batches: at least `total_steps` of them, ids alone or with labels; documents longer than
            the budget.
        learning_rate, map_rate, weight_decay: see `parameter_groups`.
        warmup: share of the steps.
        on_step: called with the step's number, from 1, and its loss.
        window, num_sinks: of the student; None takes the attached ones.
        autocast: dtype the base computes in; None leaves it. The memory's recurrence stays float32.
        score_share: share of the steps, the first ones, in which slots' scores are fitted to the
            later use of tokens, see `ahn.training.slots`; 0 steps without slots.

    Returns:
        The loss of every step.

    Raises ValueError for too few batches.
    """
    parameters = memory_parameters(model)
    groups = parameter_groups(parameters, learning_rate, map_rate, weight_decay)
    optimizer = torch.optim.AdamW(groups)
    keep_rates_positive(optimizer, rate_parameters(parameters).values())
    score_steps = round(score_share * total_steps) if has_slots(parameters) else 0
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, total_steps, warmup)
    )
    losses: list[float] = []
    with only_trainable(model, parameters.values()), two_stream_layers(model):
        for step, batch in zip(range(1, total_steps + 1), batches):
            function = _score_loss if step <= score_steps else _distillation_loss
            with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
                loss = function(model, _on_device(model, batch), window, num_sinks)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if on_step is not None:
                on_step(step, losses[-1])
    if len(losses) < total_steps:
        raise ValueError(f"distill: expected {total_steps} batches, got {len(losses)}")
    return losses


def _on_device(model: PreTrainedModel, batch: Tensor | Batch) -> Batch:
    batch = Batch(batch) if isinstance(batch, Tensor) else batch
    return Batch(*(None if x is None else x.to(model.device) for x in batch))  # type: ignore[arg-type]


def _distillation_loss(
    model: PreTrainedModel, batch: Batch, window: int | None, num_sinks: int | None
) -> Tensor:
    return distillation_loss(
        model,
        **batch._asdict(),
        window=window,
        num_sinks=num_sinks,
        checkpointing=False,
    )


def _score_loss(
    model: PreTrainedModel, batch: Batch, window: int | None, num_sinks: int | None
) -> Tensor:
    config = attached_state(model).config.with_budget(window, num_sinks)
    return score_losses(model, batch, window=config.window, num_sinks=config.num_sinks)


def warmup_cosine(step: int, total_steps: int, warmup: float) -> float:
    """Factor of the learning rate at `step`, from 0: linear up, then a cosine down to 0."""
    warmup_steps = max(1, round(warmup * total_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(
    parameters: dict[str, nn.Parameter],
    learning_rate: float,
    map_rate: float,
    weight_decay: float,
) -> list[dict]:
    """Optimizer groups: gate projections; vectors, without weight decay; head-wise linear maps.

    The maps (`o_proj`, `q_proj`, `[H, in, out]`) have the learning rate `learning_rate * map_rate`.
    Their gradients are the noisiest: at the full rate a short run ends worse than it began. The
    other parameters need the full rate: a fresh cell forgets within a few tokens, and to remember
    thousands its decay has to become slower by orders of magnitude. The rates of slots learn
    `RATE_FACTOR` times as fast.
    """
    by_ndim: dict[int, list[nn.Parameter]] = {1: [], 2: [], 3: []}
    rates = rate_parameters(parameters)
    for name, parameter in parameters.items():
        if name not in rates:
            by_ndim[max(1, parameter.ndim)].append(parameter)
    fast = {"params": [*rates.values()], "lr": learning_rate * RATE_FACTOR, "weight_decay": 0.0}
    return [
        {"params": by_ndim[2], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": by_ndim[1], "lr": learning_rate, "weight_decay": 0.0},
        {"params": by_ndim[3], "lr": learning_rate * map_rate, "weight_decay": weight_decay},
        *([fast] if rates else []),
    ]
