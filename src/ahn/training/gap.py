"""How much of what the window alone loses against full attention a memory recovers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ahn.layer.modes import WINDOW
from ahn.training.distillation import Batch, count
from ahn.training.limits import Limits


@torch.no_grad()
def measure_gap(
    distiller: Any, batches: Iterable[Batch], limits: Limits, reduce: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Mean nats a labelled token beyond the budget, and the share of the gap recovered.

    Args:
        distiller: a `Distiller`, or what DDP, FSDP2 or DeepSpeed made of it.
        batches: of this process.
        reduce: sums a tensor over all processes.

    Raises:
        ValueError: no labelled token lies beyond the budget.
    """
    sums = torch.zeros(6, dtype=torch.float64)
    options = {"window": limits.window, "num_sinks": limits.num_sinks}
    for batch in batches:
        given = (batch.input_ids, batch.labels, batch.position_ids)
        losses = distiller(*given, **options)
        window = distiller(*given, **options, mode=WINDOW.name)
        own = count(batch, limits.budget)
        parts = [losses.kl, losses.ce, losses.teacher_ce, window.ce]
        sums = sums.to(batch.input_ids.device)
        sums += torch.stack([*(x.double() for x in parts), *sums.new_tensor(own)])
    kl, memory, full, window, kl_tokens, tokens = reduce(sums).tolist()
    if not tokens:
        raise ValueError(
            f"eval_dataset: expected labelled tokens beyond the budget of {limits.budget}, got "
            "none (--window and --num_sinks set it)"
        )
    gap = window - full
    return {
        "kl": kl / max(kl_tokens, 1),
        "memory_ce": memory / tokens,
        "full_ce": full / tokens,
        "window_ce": window / tokens,
        "recovered": (window - memory) / gap if gap else 0.0,
    }
