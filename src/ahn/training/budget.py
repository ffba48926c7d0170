"""Window and sinks of a training step, drawn anew for each (arXiv 2510.07318)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

BUDGETS = tuple(32 << i for i in range(9))  # 32, 64, ..., 8192
SINKS = (0, 32, 64, 128, 512, 2048, 4096)
KINDS, PLACEMENTS = ("fixed", "linear", "random"), ("prefix", "random")
LINEAR_SHARE, LINEAR_LEAST = 4, 512


class Budget(NamedTuple):
    """Window and sinks of a step."""

    window: int
    num_sinks: int

    @property
    def tokens(self) -> int:
        """Tokens that the student attends to exactly."""
        return self.window + self.num_sinks


@dataclass(frozen=True)
class BudgetSampler:
    """Draws window and sinks of a training step.

    A draw depends on seed, step and length alone. So a checkpoint saves no state of it, and
    processes that pass the same length draw the same budget. Each step shuffles the candidates and
    takes the first that fits the length.

    Attributes:
        kind: of the budget: `fixed`; `linear`, a quarter of the length, 512 at least; `random`,
            from 32, 64, ..., 8192 with length / 8 < budget < length.
        placement: of the memory: `prefix`, no sinks; `random`, sinks from `SINKS`, at most half of
            the budget, which includes them.
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
    def min_length(self) -> int:
        """Tokens of the shortest document that can have a token beyond a drawn budget."""
        least = {"fixed": self.window, "linear": LINEAR_LEAST, "random": BUDGETS[0]}
        return least[self.kind] + 1

    def draw(self, step: int, length: int) -> Budget:
        """Window and sinks of a step for documents of at most `length` tokens.

        Raises ValueError where no budget is below the length.
        """
        if length < self.min_length:
            raise ValueError(
                f"sliding_window_type {self.kind}: expected a document of at least "
                f"{self.min_length} tokens, got {length}"
            )
        generator = random.Random(f"{self.seed} {step}")
        budgets, sinks = (generator.sample(x, len(x)) for x in (BUDGETS, SINKS))
        tokens = self._tokens(length, budgets)
        if self.placement == "prefix":
            return Budget(tokens, 0)
        num_sinks = next(x for x in sinks if x <= tokens / 2)
        return Budget(tokens - num_sinks, num_sinks)

    def _tokens(self, length: int, shuffled: list[int]) -> int:
        if self.kind == "fixed":
            return self.window
        if self.kind == "linear":
            return max(length // LINEAR_SHARE, LINEAR_LEAST)
        fitting = [x for x in shuffled if length / 8 < x < length]
        # Beyond 65,536 tokens no candidate reaches an eighth: then the largest.
        return fitting[0] if fitting else max(x for x in BUDGETS if x < length)
