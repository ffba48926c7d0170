"""A conversation within a number of tokens, shortened as LLaMA-Factory shortens it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ahn.training.losses import IGNORE


@dataclass(frozen=True)
class Turn:
    """A prompt, what came since the last answer, and the answer to it, as token ids."""

    prompt: list[int]
    answer: list[int]
    is_learnt: bool = True


def within(turns: Sequence[Turn], limit: int) -> tuple[list[int], list[int], int]:
    """Ids and labels of the first turns within so many tokens, and how many tokens were cut off.

    Each turn gets what the turns before it left. A prompt too long for its turn loses its end, as
    in LLaMA-Factory: the answer and the beginning of the prompt stay.
    """
    ids: list[int] = []
    labels: list[int] = []
    for turn in turns:
        if len(ids) >= limit:
            break
        prompt, answer = shares(len(turn.prompt), len(turn.answer), limit - len(ids))
        ids += turn.prompt[:prompt] + turn.answer[:answer]
        labels += [IGNORE] * prompt
        labels += turn.answer[:answer] if turn.is_learnt else [IGNORE] * answer
    total = sum(len(turn.prompt) + len(turn.answer) for turn in turns)
    return ids, labels, total - len(ids)


def shares(prompt: int, answer: int, room: int) -> tuple[int, int]:
    """Tokens of a prompt and of its answer that are kept where there is room for so many.

    An answer below half of the room stays whole, and so does a prompt below half of it; where both
    are longer they are shortened in proportion.
    """
    if 2 * answer < room:
        kept = answer
    elif 2 * prompt < room:
        kept = min(answer, room - prompt)
    else:
        kept = min(answer, int(room * (answer / (prompt + answer))))
    return min(prompt, room - kept), kept
