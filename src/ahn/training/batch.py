"""A batch of token ids, and the tokens of it that losses are computed on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ahn.training.losses import IGNORE, TARGETS


class Batch(NamedTuple):
    """Token ids of a batch with their labels, positions and mask, each `[B, T]`.

    Attributes:
        labels: -100 where a token has no loss; None labels all tokens.
        position_ids: start at 0 in every document of packed rows; None for one document a row.
        attention_mask: of left-padded rows. Right padding needs none: its labels are -100.
    """

    input_ids: Tensor
    labels: Tensor | None = None
    position_ids: Tensor | None = None
    attention_mask: Tensor | None = None

    def positions(self) -> Tensor:
        """Position of every token in its document, from 0, `[B, T]`; left padding has -1."""
        if self.position_ids is not None:
            return self.position_ids.expand_as(self.input_ids)
        if self.attention_mask is not None:
            return self.attention_mask.long().cumsum(1) * self.attention_mask - 1
        index = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return index.expand_as(self.input_ids)

    def decoder_inputs(self) -> dict[str, Tensor | None]:
        """Keyword arguments of the decoder's forward."""
        positions = self.position_ids
        if self.attention_mask is not None:
            positions = self.positions().clamp(min=0)
        return {
            "input_ids": self.input_ids,
            "position_ids": positions,
            "attention_mask": self.attention_mask,
        }


class TokenCounts(NamedTuple):
    """Numbers of tokens that losses are averaged over, of one batch or of many.

    Attributes:
        labelled: tokens beyond the budget that are labelled.
        targets: tokens beyond the budget whose next token is labelled.
    """

    labelled: float
    targets: float

    def of(self, kind: str) -> float:
        """The divisor of the mean of a loss of that kind, at least 1."""
        return max(self.targets if kind == TARGETS else self.labelled, 1)


class LossTokens(NamedTuple):
    """The tokens of a batch that have a loss.

    Attributes:
        labelled: `[B, T]` bool, labelled tokens beyond the budget.
        targets: `[B, T]`, the next token of each token beyond the budget; -100 where the next one
            is not labelled or belongs to another document.
    """

    labelled: Tensor
    targets: Tensor

    def counts(self) -> TokenCounts:
        """How many there are of each kind."""
        return TokenCounts(float(self.labelled.sum()), float((self.targets != IGNORE).sum()))


def loss_tokens(batch: Batch, budget: int) -> LossTokens:
    """Find the tokens of a batch that have a loss for a student of this budget.

    Teacher and student are equal up to the budget, so only tokens beyond it have a loss. As in the
    released code the KL of token t has the label of token t, not of the token it predicts; the
    cross-entropy of token t has the label of token t + 1.
    """
    positions = batch.positions()
    beyond = positions >= budget
    labels = batch.input_ids if batch.labels is None else batch.labels
    targets = torch.full_like(labels, IGNORE)
    same_document = positions[:, 1:] == positions[:, :-1] + 1
    targets[:, :-1] = torch.where(beyond[:, :-1] & same_document, labels[:, 1:], IGNORE)
    return LossTokens(beyond & (labels != IGNORE), targets)
