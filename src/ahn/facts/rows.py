"""Rows of tokens: a text into which facts are woven, and the questions that ask for them."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahn.facts.planted import Fact


class Event(NamedTuple):
    """A fact is stated or asked for before the token at `place` of a text."""

    place: int
    asks: bool
    fact: Fact


class Answer(NamedTuple):
    """Where a value is asked for in a row: its first token, its length, and where it was stated."""

    start: int
    length: int
    stated: int

    @property
    def distance(self) -> int:
        """Tokens from where the value was stated to where it is asked for."""
        return self.start - self.stated


def weave(text: Tensor, events: Iterable[Event]) -> tuple[Tensor, list[Answer]]:
    """A text `[N]` with facts and questions in it: the row, and its answers in order.

    What asks for a fact that was stated anew asks for its last value. A question that comes before
    its fact is left out.

    Args:
        text: token ids, `[N]`, integers.
        events: in any order; of one place, those given first come first.
    """
    parts: list[Tensor] = []
    answers: list[Answer] = []
    latest: dict[tuple[str, str], tuple[Fact, int]] = {}  # by key: fact, place of its value
    taken = length = 0
    for event in sorted(events, key=lambda x: x.place):
        fact = event.fact
        if event.asks and fact.key not in latest:
            continue
        parts.append(text[taken : event.place])
        length, taken = length + event.place - taken, event.place
        if event.asks:
            fact, stated = latest[fact.key]
            answers.append(Answer(length + len(fact.asked.before), len(fact.asked.value), stated))
        else:
            latest[fact.key] = fact, length + len(fact.stated.before)
        said = fact.asked.ids if event.asks else fact.stated.ids
        parts.append(text.new_tensor(said))
        length += len(said)
    return torch.cat([*parts, text[taken:]]), answers


def last_tokens(
    row: Tensor, answers: Iterable[Answer], length: int, num_sinks: int
) -> tuple[Tensor, list[Answer]]:
    """The last tokens of a row, so that questions stay; answers whose fact is cut off are left out.

    Args:
        length: of the row that is returned, at most.
        num_sinks: first tokens that are kept for ever and need no recall.
    """
    cut = max(0, len(row) - length)
    moved = (Answer(x.start - cut, x.length, x.stated - cut) for x in answers)
    return row[cut:], [x for x in moved if x.stated >= num_sinks]


def stated_anywhere(
    facts: Sequence[Fact], places: Sequence[int], rng: random.Random
) -> list[Event]:
    """Each fact stated at one of the places."""
    return [Event(rng.choice(places), False, fact) for fact in facts]


def asked_later(
    stated: Sequence[Event],
    places: Sequence[int],
    length: int,
    rng: random.Random,
    *,
    asked: float = 0.8,
    at_end: float = 0.5,
    nearest: int = 256,
) -> list[Event]:
    """Questions for stated facts, at all distances alike.

    Distances are drawn evenly in their logarithm: as many within a thousand tokens as from there
    to some thousands.

    Args:
        places: where lines end, sorted.
        length: tokens of the text.
        asked: share of the facts that are asked for.
        at_end: share of the questions that stand at the end of the text.
        nearest: least distance of a question within the text, in tokens.
    """
    reach = math.log(max(nearest + 1, length))
    events = []
    for event in stated:
        if rng.random() < asked:
            later = event.place + round(math.exp(rng.uniform(math.log(nearest), reach)))
            index = bisect_left(places, later)
            last = rng.random() < at_end or index == len(places)
            events.append(Event(length if last else places[index], True, event.fact))
    rng.shuffle(events)
    return events
