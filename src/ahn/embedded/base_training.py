"""The training loop of the embedded base."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3ForCausalLM

CURVE_STEPS = 20  # each point of the curves is a mean over so many


@dataclass
class Curves:
    """Mean nats per token: of text, and of answers; each of `CURVE_STEPS` steps.

    A point of the answers is None where no row asked for anything.
    """

    text: list[float] = field(default_factory=list)
    answers: list[float | None] = field(default_factory=list)

    def add(self, sums: list[float]) -> None:
        """One point from the sums over its steps: nats and tokens of text, then of answers."""
        text, text_tokens, answers, answer_tokens = sums
        self.text.append(round(text / text_tokens, 4))
        self.answers.append(round(answers / answer_tokens, 4) if answer_tokens else None)


@dataclass(frozen=True)
class Optimization:
    """How the base is trained.

    Attributes:
        steps: of the schedule.
        weight_decay: high, as the text is read dozens of times.
        seconds: the schedule ends after so many even where steps are left; None: never.
        watch_steps: `watch` is called after so many steps, again and again.
    """

    steps: int = 3200
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 1.0
    seconds: float | None = None
    watch_steps: int = 400


def train(
    model: Qwen3ForCausalLM,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimization: Optimization,
    device: str,
    watch: Callable[[int], None] = lambda step: None,
) -> Curves:
    """Train on batches of ids `[B, T + 1]` and the weight of each target `[B, T]`.

    The clock of `seconds` starts after the first step, which compiles.
    """
    model.to(device).train()  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        _groups(model, optimization.weight_decay), lr=optimization.learning_rate,
        betas=(0.9, 0.95), fused=device == "cuda",
    )  # fmt: skip
    step_loss = torch.compile(_loss, dynamic=False) if device == "cuda" else _loss
    curves, sums = Curves(), torch.zeros(4, device=device)
    started, share = 0.0, 0.0
    for step, (ids, weights) in enumerate(batches, 1):
        for group in optimizer.param_groups:
            group["lr"] = optimization.learning_rate * _rate(step - 1, share, optimization)
        ids, weights = (x.to(device, non_blocking=True) for x in (ids, weights))
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss, step_sums = step_loss(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        sums += step_sums
        started = started or _clock(loss)
        share = max(step / optimization.steps, _share_of_time(started, optimization))
        if step % CURVE_STEPS == 0 or share >= 1:
            curves.add(sums.tolist())
            sums.zero_()
            print(
                f"step {step} text {curves.text[-1]:.4f} answers {curves.answers[-1]} "
                f"{time.perf_counter() - started:.0f} s {share:.0%}",
                flush=True,
            )
        if step % optimization.watch_steps == 0 and share < 1:
            watch(step)
            model.train()
        if share >= 1:
            break
    return curves


def _clock(loss: Tensor) -> float:
    """The time once the first step has run."""
    loss.item()
    return time.perf_counter()


def _share_of_time(started: float, optimization: Optimization) -> float:
    if optimization.seconds is None:
        return 0.0
    return (time.perf_counter() - started) / optimization.seconds


def _loss(model: Qwen3ForCausalLM, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean loss, and sums of nats and tokens: of text, then of answers."""
    hidden = model.model(
        # A mapping is taken as the finished masks; None in it is plain causal attention, for which
        # a compiled model would else make a mask of all pairs.
        ids[:, :-1], attention_mask={"full_attention": None}, use_cache=False
    ).last_hidden_state  # fmt: skip
    logits = model.lm_head(hidden).float().flatten(0, 1)
    nats = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    asked = weights.flatten() > 1
    with torch.no_grad():
        sums = torch.stack([x.float().sum() for x in (nats * ~asked, ~asked, nats * asked, asked)])
    return (nats * weights.flatten()).mean(), sums


def _groups(model: Qwen3ForCausalLM, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _rate(step: int, share: float, optimization: Optimization) -> float:
    """Linear warm-up, then a cosine to zero over what is left of the schedule."""
    if step < optimization.warmup_steps:
        return (step + 1) / optimization.warmup_steps
    warm = min(1.0, optimization.warmup_steps / optimization.steps)
    left = (share - warm) / max(1e-9, 1 - warm)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, left))))
