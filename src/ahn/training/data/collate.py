"""Rows become a batch of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ahn.training.losses import IGNORE


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right, where causal attention cannot see it, so that no mask is needed.

    Attributes:
        pad_token_id: of the padding; any will do, it is never labelled.
    """

    pad_token_id: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids` and `labels`, `[B, T]`; of packed rows also `position_ids`, `[B, T]`."""
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
    """Positions of each document from 0; padding is a document of its own."""
    lengths = lengths or []
    return [i for n in (*lengths, total - sum(lengths)) for i in range(n)]


def longest_document(batch: dict[str, Any]) -> int:
    """Tokens of the longest document of a batch; of packed rows up to its last label."""
    positions = batch.get("position_ids")
    if positions is None:
        return batch["input_ids"].shape[1]
    return int(((positions + 1) * (batch["labels"] != IGNORE)).max())
