"""How answers are chosen and how long they may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ahn.generation.streaming import warpers


@dataclass(frozen=True)
class Sampling:
    """Attributes:
        max_new_tokens: the longest answer.
        temperature: 0 takes the likeliest token.
        top_k, top_p: sample among this many tokens, this much probability; 0 and 1 mean all.
        generator: source of the random numbers; None is PyTorch's own.

    Raises ValueError: a value is out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        warpers(self.temperature, self.top_k, self.top_p)
