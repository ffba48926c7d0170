"""What each training step keeps exactly: window and sinks, drawn anew (arXiv 2510.07318)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

BUDGETS = tuple(32 << i for i in range(9))  # 32, 64, ..., 8192
SINKS = (0, 32, 64, 128, 512, 2048, 4096)
KINDS, PLACEMENTS = ("fixed", "linear", "random"), ("prefix", "random")
LINEAR_SHARE, LINEAR_LEAST = 4, 512


class Limits(NamedTuple):
    """What a step keeps exactly; `budget` tokens in all."""

    window: int
    num_sinks: int

    @property
    def budget(self) -> int:
        return self.window + self.num_sinks


@dataclass(frozen=True)
class LimitSampler:
    """Draws window and sinks of a training step.

    A draw depends on seed, step and length alone: there is no state to save, and processes that
    give one length draw the same. For every length the candidates are gone through in one random
    order, and the first that fits is taken.

    Attributes:
        kind: of the budget: `fixed`; `linear`, a quarter of the length, 512 at least; `random`,
            from 32, 64, ..., 8192 with length / 8 < budget < length.
        placement: of the memory: `prefix`, no sinks; `random`, sinks from `SINKS`, half of the
            budget at most and taken out of it.
        window: the budget where it is `fixed`.
        seed: of the draws.

    Raises:
        ValueError: an unknown kind or placement, or a window below 1.
    """

    kind: str = "random"
    placement: str = "random"
    window: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"sliding_window_type: expected one of {', '.join(KINDS)}, got {self.kind!r}"
            )
        if self.placement not in PLACEMENTS:
            raise ValueError(
                f"ahn_position: expected one of {', '.join(PLACEMENTS)}, got {self.placement!r}"
            )
        if self.window < 1:
            raise ValueError(f"sliding_window: expected an integer >= 1, got {self.window}")

    @property
    def shortest(self) -> int:
        """Tokens that a document needs at least for any of it to lie beyond the budget."""
        least = {"fixed": self.window, "linear": LINEAR_LEAST, "random": BUDGETS[0]}
        return least[self.kind] + 1

    def draw(self, step: int, length: int) -> Limits:
        """Limits of a step for documents of at most `length` tokens.

        Raises ValueError where no budget is below the length.
        """
        if length < self.shortest:
            raise ValueError(
                f"sliding_window_type {self.kind}: expected a document of at least "
                f"{self.shortest} tokens, got {length}"
            )
        generator = random.Random(f"{self.seed} {step}")
        orders = [generator.sample(x, len(x)) for x in (BUDGETS, SINKS)]
        budget = self._budget(length, orders[0])
        if self.placement == "prefix":
            return Limits(budget, 0)
        sinks = next(x for x in orders[1] if x <= budget / 2)
        return Limits(budget - sinks, sinks)

    def _budget(self, length: int, order: list[int]) -> int:
        if self.kind == "fixed":
            return self.window
        if self.kind == "linear":
            return max(length // LINEAR_SHARE, LINEAR_LEAST)
        fitting = [x for x in order if length / 8 < x < length]
        # Beyond 65,536 tokens no candidate reaches an eighth: then the largest.
        return fitting[0] if fitting else max(x for x in BUDGETS if x < length)
