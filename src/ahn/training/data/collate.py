"""Rows of a data set become a batch of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ahn.training.losses import IGNORE


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right. Causal attention never sees that padding, so there is no mask.

    Attributes:
        pad_token_id: any token will do, since padding is not labelled.
    """

    pad_token_id: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids` and `labels`, `[B, T]`; for packed rows also `position_ids`, `[B, T]`."""
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {
            "input_ids": _padded([row["input_ids"] for row in rows], longest, self.pad_token_id),
            "labels": _padded([row["labels"] for row in rows], longest, IGNORE),
        }
        if any("seq_lengths" in row for row in rows):
            positions = [_positions(row.get("seq_lengths"), longest) for row in rows]
            batch["position_ids"] = torch.tensor(positions)
        return batch


def _padded(rows: list[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def _positions(lengths: list[int] | None, total: int) -> list[int]:
    """Positions that start at 0 in each document; padding counts as a last document."""
    lengths = lengths or []
    return [i for n in (*lengths, total - sum(lengths)) for i in range(n)]


def longest_document(batch: dict[str, Any]) -> int:
    """Tokens of the longest document of a batch; in packed rows, up to its last label."""
    positions = batch.get("position_ids")
    if positions is None:
        return batch["input_ids"].shape[1]
    return int(((positions + 1) * (batch["labels"] != IGNORE)).max())
