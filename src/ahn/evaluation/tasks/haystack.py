"""Stretches of a text in whole lines, and the lines at given depths of them."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from ahn.evaluation.texts import token_starts

Hay = list[tuple[str, int]]  # lines and the tokens of each


def lines_of(encoder: Any, text: str) -> tuple[list[str], list[int]]:
    """The lines of a text, and how many of its tokens begin in each or at its end."""
    starts, begin, lines, sizes = token_starts(encoder, text), 0, text.split("\n"), []
    for line in lines:
        sizes.append(bisect_left(starts, begin + len(line) + 1) - bisect_left(starts, begin))
        begin += len(line) + 1
    return lines, sizes


def stretch(lines: Sequence[str], sizes: Sequence[int], length: int, chance: random.Random) -> Hay:
    """Consecutive lines of `length` tokens and their sizes, from a random place, the texts' end
    followed by their beginning."""
    if length < 1:
        raise ValueError(f"lengths: expected {1 - length} more tokens, to hold all needles")
    if length > sum(sizes):
        raise ValueError(f"texts: expected at least {length} tokens, got {sum(sizes)}")
    hay: Hay = []
    start, total = chance.randrange(len(lines)), 0
    while total < length:
        index = (start + len(hay)) % len(lines)
        hay.append((lines[index], sizes[index]))
        total += sizes[index]
    return hay


def places_of(hay: Sequence[tuple[str, int]], depths: Sequence[float]) -> list[int]:
    """The line before which each needle stands."""
    total, before, places = sum(size for _, size in hay), 0, {}
    for line, (_, size) in enumerate([*hay, ("", 0)]):
        for depth in depths:
            if depth not in places and before >= depth * total:
                places[depth] = line
        before += size
    return [places[depth] for depth in depths]
