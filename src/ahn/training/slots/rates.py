"""Rates of slots, by which a priority grows with a token's position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

RATE_FACTOR = 10.0  # of the learning rate: a rate has far to go, and its gradient is small


def rate_parameters(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The rates among the memory's parameters, by name."""
    return {name: x for name, x in parameters.items() if name.endswith("ahn_slots.rate")}


def has_slots(parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether a memory with these parameters has slots."""
    return bool(rate_parameters(parameters))


def keep_rates_positive(optimizer: torch.optim.Optimizer, rates: Any) -> None:
    """After every step put a rate that has fallen below zero back to it: age never adds value."""
    rates = list(rates)

    @torch.no_grad()
    def clamp(*_: Any) -> None:
        for rate in rates:
            rate.clamp_(min=0)

    if rates:
        optimizer.register_step_post_hook(clamp)
