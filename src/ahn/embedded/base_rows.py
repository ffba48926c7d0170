"""What the base is trained on: crops of text, a share of them with facts and questions in it."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ahn.facts import Answer, Fact, FactMaker, asked_later, stated_anywhere, weave
from ahn.facts.rows import last_tokens

THREADS, AHEAD = 8, 16
FEWEST_FACTS, MOST_FACTS = 8, 128  # of a row
TOKENS_A_FACT = 128  # where a row is full of them
CHANGED = 0.1  # share of facts that are stated again with another value


@dataclass(frozen=True)
class RowMaker:
    """Makes rows of tokens of a stream of text.

    Attributes:
        stream: `[N]` token ids.
        line_ends: `[vocabulary]` bool, which tokens begin with a line end.
        bank: facts ready to be used, each with another value of the same key.
        share: of the rows that hold facts.
        weight: of a token of an answer in the loss; 1 for every other.
    """

    stream: Tensor
    line_ends: Tensor
    bank: Sequence[tuple[Fact, Fact]]
    share: float
    weight: float

    def batch(self, seed: str, length: int, rows: int) -> tuple[Tensor, Tensor]:
        """Ids `[rows, length + 1]` and the weight of each target `[rows, length]`."""
        rng = random.Random(seed)
        ids, weights = torch.empty(rows, length + 1, dtype=torch.long), torch.ones(rows, length)
        for row in range(rows):
            ids[row], answers = self.row(length, rng)
            for answer in answers:
                weights[row, answer.start - 1 : answer.start - 1 + answer.length] = self.weight
        return ids, weights

    def row(self, length: int, rng: random.Random) -> tuple[Tensor, list[Answer]]:
        """`length + 1` tokens, and the answers in them."""
        begin = rng.randrange(len(self.stream) - length)
        text = self.stream[begin : begin + length + 1].long()
        if rng.random() >= self.share:
            return text, []
        places = self.line_ends[text].nonzero()[:, 0].tolist() or [0]
        stated = stated_anywhere(self._facts(length, rng), places, rng)
        row, answers = weave(text, [*stated, *asked_later(stated, places, len(text), rng)])
        return last_tokens(row, answers, length + 1, num_sinks=0)

    def _facts(self, length: int, rng: random.Random) -> list[Fact]:
        most = min(MOST_FACTS, max(FEWEST_FACTS, length // TOKENS_A_FACT))
        count = round(math.exp(rng.uniform(math.log(FEWEST_FACTS), math.log(most))))
        chosen = [rng.choice(self.bank) for _ in range(count)]
        changed = [other for _, other in chosen if rng.random() < CHANGED]
        return [fact for fact, _ in chosen] + changed


def fact_bank(maker: FactMaker, count: int, seed: int) -> list[tuple[Fact, Fact]]:
    """So many facts, each with another value of the same key."""
    rng = random.Random(f"bank/{seed}")
    facts = [maker.fact(rng) for _ in range(count)]
    return [(fact, maker.fact(rng, like=fact)) for fact in facts]


def batches(
    maker: RowMaker, shapes: Sequence[tuple[int, int]], seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch for each (length, rows) of `shapes`, made ahead by threads, the same for one seed."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future] = deque()
        for step, shape in enumerate(shapes):
            waiting.append(pool.submit(maker.batch, f"{seed}/{step}", *shape))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
