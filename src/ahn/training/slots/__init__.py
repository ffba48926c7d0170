"""Training of exact slots: shares of layers and heads, scores from later use, KL through choice."""

from ahn.training.slots.rates import (
    RATE_FACTOR,
    has_slots,
    keep_rates_positive,
    rate_parameters,
)
from ahn.training.slots.scores import SCORE_SHARE, SCORES, score_losses
from ahn.training.slots.shares import Shares, find_shares

__all__ = [
    "RATE_FACTOR",
    "SCORES",
    "SCORE_SHARE",
    "Shares",
    "find_shares",
    "has_slots",
    "keep_rates_positive",
    "rate_parameters",
    "score_losses",
]
