"""Rows of key heads that have different numbers of them, in one buffer without gaps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Heads side by side that have equally many rows, and where these lie."""

    heads: slice
    rows: slice
    size: int


@dataclass(frozen=True)
class HeadRows:
    """The rows of all key heads, head after head: `[B, N, ...]`, N the sum of their numbers.

    Attributes:
        sizes: rows of each of the G heads; one may have none.
    """

    sizes: tuple[int, ...]

    @property
    def total(self) -> int:
        """Rows of all heads, N."""
        return sum(self.sizes)

    @property
    def most(self) -> int:
        """Rows of the head that has most, M."""
        return max(self.sizes)

    @property
    def runs(self) -> list[Run]:
        """Heads by equal size, without those that have no rows."""
        runs, head, row = [], 0, 0
        for size, heads in groupby(self.sizes):
            number = len(list(heads))
            first, end = (head, row), (head + number, row + number * size)
            if size:
                runs.append(Run(slice(first[0], end[0]), slice(first[1], end[1]), size))
            head, row = end
        return runs

    def of(self, run: Run, x: Tensor) -> Tensor:
        """A view `[B, n, size, ...]` of the rows `[B, N, ...]` of n heads."""
        return x[:, run.rows].unflatten(1, (-1, run.size))

    def padded(self, x: Tensor) -> Tensor:
        """`[B, G, M, ...]` of rows `[B, N, ...]`, with zeros behind those of a head.

        A view where all heads have equally many.
        """
        if len(set(self.sizes)) == 1:
            return x.unflatten(1, (len(self.sizes), -1))
        padded = x.new_zeros(len(x), len(self.sizes), self.most, *x.shape[2:])
        for run in self.runs:
            padded[:, run.heads, : run.size] = self.of(run, x)
        return padded

    def flat(self, x: Tensor) -> Tensor:
        """The rows `[B, N, ...]` of `padded` ones `[B, G, M, ...]`."""
        return torch.cat([x[:, run.heads, : run.size].flatten(1, 2) for run in self.runs], 1)

    def first(self, device: torch.device) -> Tensor:
        """The first row of each head, and their number, `[G + 1]` int32; made once."""
        return _first(self.sizes, device)


@cache
def _first(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([*accumulate(sizes, initial=0)], dtype=torch.int32, device=device)
