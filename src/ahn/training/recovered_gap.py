"""How much a memory recovers of what the window alone loses against full attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ahn.layer.modes import WINDOW
from ahn.training.batch import Batch, TokenCounts, loss_tokens
from ahn.training.budget import Budget


@torch.no_grad()
def measure_gap(
    distiller: Any, batches: Iterable[Batch], budget: Budget, reduce: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Mean losses of the labelled tokens beyond the budget, and the share of the gap recovered.

    Args:
        distiller: a `Distiller`, or what DDP, FSDP2 or DeepSpeed wraps around it.
        batches: of this process.
        budget: of the student.
        reduce: sums a tensor over all processes.

    Returns:
        In nats a token: `kl`, and the cross-entropies `memory_ce`, `full_ce`, `window_ce`; and
        `recovered`, 0 for the window alone and 1 for full attention.

    Raises:
        ValueError: no labelled token lies beyond the budget.
    """
    sums = torch.zeros(6, dtype=torch.float64)
    for batch in batches:
        sums = sums.to(batch.input_ids.device)
        sums += _batch_sums(distiller, batch, budget)
    kl, memory, full, window, *counts = reduce(sums).tolist()
    tokens = TokenCounts(*counts)
    if not tokens.targets:
        raise ValueError(
            f"eval_dataset: expected labelled tokens beyond the budget of {budget.tokens}, got "
            "none (--window and --num_sinks set it)"
        )
    gap = window - full
    return {
        "kl": kl / max(tokens.labelled, 1),
        "memory_ce": memory / tokens.targets,
        "full_ce": full / tokens.targets,
        "window_ce": window / tokens.targets,
        "recovered": (window - memory) / gap if gap else 0.0,
    }


def _batch_sums(distiller: Any, batch: Batch, budget: Budget) -> Tensor:
    """Of a batch: KL, cross-entropies of memory, full attention and window, token counts; `[6]`."""
    inputs = (batch.input_ids, batch.labels, batch.position_ids)
    sizes = {"window": budget.window, "num_sinks": budget.num_sinks}
    sums = distiller(*inputs, **sizes).sums
    window = distiller(*inputs, **sizes, mode=WINDOW.name).sums
    values = [sums["kl"], sums["ce"], sums["teacher_ce"], window["ce"]]
    losses = torch.stack([value.double() for value in values])
    return torch.cat([losses, losses.new_tensor(loss_tokens(batch, budget.tokens).counts())])
