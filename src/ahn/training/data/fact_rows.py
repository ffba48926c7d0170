"""Plain text becomes rows of tokens, a share of which ask for facts in them.

Half of those rows are text that goes on to ask, with every token labelled. The other half, where
the tokenizer has a chat template, are a user's message with the text and questions, and answers of
which the values are labelled, and the token before each.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ahn.facts import (
    Event,
    FactMaker,
    Words,
    asked_later,
    forms_of,
    found_facts,
    stated_anywhere,
    weave,
    words_of,
)
from ahn.facts.forms import CONTINUATIONS, LANGUAGES
from ahn.facts.planted import Encode, fact_of_text
from ahn.training.losses import IGNORE

FEWEST, MOST = 2, 64  # facts of a row
TOKENS_A_FACT = 192  # where a row is full of them
CHANGED = 0.1  # share of facts that are stated again with another value
CHATS, MOST_TURNS = 0.5, 4  # share of chats, and the most questions of one
MARK = "\u241e"  # stands for the text and the values while a chat template is filled in
Row = tuple[list[int], list[int]]  # token ids and labels


@dataclass(frozen=True)
class FactRows:
    """Makes rows of plain text; it can be pickled, as workers and the cache of `datasets` require.

    Attributes:
        tokenizer: a fast one, that gives offsets.
        length: most tokens of a row.
        share: of the rows that ask for facts.
        languages: of the forms of facts, see `ahn.facts.forms`.
        seed: the same text and seed give the same rows.

    Raises:
        ValueError: a value is out of range, or the tokenizer gives no offsets.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    share: float
    languages: tuple[str, ...] = LANGUAGES
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"facts: expected a share between 0 and 1, got {self.share}")
        if not self.tokenizer.is_fast:
            raise ValueError("facts: expected a fast tokenizer (with offsets), got a slow one")
        forms_of(self.languages)  # an unknown language is refused before any text is read

    def rows(self, text: str) -> Iterator[Row]:
        """Rows of a text, one for each passage of it; facts are made of the text's own words."""
        whole = Passage.of(self.tokenizer, text)
        try:
            words = words_of([text])
        except ValueError:  # a text of a few words, of which no fact is made
            words = None
        for begin in range(0, len(whole.ids), self.length):
            passage = whole.part(begin, begin + self.length)
            rng = random.Random(f"{self.seed}/{_digest(passage.text)}")
            if words is not None and rng.random() < self.share:
                yield self._asking(passage, words, rng)
            else:
                yield (passage.ids,) * 2

    def _asking(self, passage: Passage, words: Words, rng: random.Random) -> Row:
        """A row with facts: planted ones and those of the passage itself."""
        maker = FactMaker(forms_of(self.languages), words, self._encode)
        most = max(FEWEST, min(MOST, self.length // TOKENS_A_FACT))
        count = round(math.exp(rng.uniform(math.log(FEWEST), math.log(most))))
        facts = [maker.fact(rng) for _ in range(count)]
        facts += [maker.fact(rng, like=fact) for fact in facts if rng.random() < CHANGED]
        is_chat = self.tokenizer.chat_template is not None and rng.random() < CHATS
        build, draw = self._chat if is_chat else self._text, rng.random()
        size = self.length - sum(len(fact.stated.ids) for fact in facts)
        while True:  # until text, facts and questions fit
            size, chance = max(1, size), random.Random(draw)
            part = passage.part(0, size)
            found = part.found(self._encode, self.languages, chance)
            stated = stated_anywhere(facts, part.line_ends, chance)
            stated += chance.sample(found, min(len(found), count))
            ids, labels = build(part, stated, chance)
            if size == 1 or len(ids) <= self.length:
                return ids[-self.length :], labels[-self.length :]
            size -= len(ids) - self.length

    def _text(self, passage: Passage, stated: list[Event], rng: random.Random) -> Row:
        """A text that goes on to ask; all its tokens are labelled."""
        asked = asked_later(stated, passage.line_ends, len(passage.ids), rng)
        row, _ = weave(torch.tensor(passage.ids), [*stated, *asked])
        return (row.tolist(),) * 2

    def _chat(self, passage: Passage, stated: list[Event], rng: random.Random) -> Row:
        """A conversation about a text; the values in the answers are labelled."""
        content, _ = weave(torch.tensor(passage.ids), stated)
        latest = {x.fact.key: x.fact for x in sorted(stated, key=lambda x: x.place)}
        chosen = rng.sample(sorted(latest), min(MOST_TURNS, len(latest)))
        turns = [latest[key].chat for key in chosen]
        pieces = [self._encode(piece) for piece in self._template(turns)]
        values = [self._encode(value) for _, _, value, _ in turns]
        ids = [*pieces[0], *content.tolist(), *pieces[1]]
        labels = [IGNORE] * len(ids)
        for value, piece in zip(values, pieces[2:]):
            labels[-1] = ids[-1]  # it predicts the value, and a token's KL has its own label
            ids += [*value, *piece]
            labels += [*value, *[IGNORE] * len(piece)]
        return ids, labels

    def _template(self, turns: Sequence[tuple[str, str, str, str]]) -> list[str]:
        """The chat's text around the passage and around each value."""
        messages = []
        for index, (question, before, _, after) in enumerate(turns):
            asked = question if index else f"{MARK}\n\n{question}"
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": f"{before}{MARK}{after}"})
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        pieces = text.split(MARK)
        if len(pieces) != len(turns) + 2:
            raise ValueError(
                "facts: expected a chat template that keeps every message once, got another"
            )
        return pieces

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


@dataclass(frozen=True)
class Passage:
    """A text as tokens; `starts` are the characters at which they begin."""

    text: str
    ids: list[int]
    starts: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, text: str) -> Passage:
        """The passage that is the whole text, without special tokens."""
        encoding = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return cls(text, encoding["input_ids"], [start for start, _ in encoding["offset_mapping"]])

    def part(self, begin: int, end: int) -> Passage:
        """The tokens `[begin, end)`."""
        starts = self.starts[begin:end]
        first = starts[0]
        last = self.starts[end] if end < len(self.starts) else len(self.text)
        return Passage(
            self.text[first:last], self.ids[begin:end], [start - first for start in starts]
        )

    @property
    def line_ends(self) -> list[int]:
        """Tokens that begin with a line end, before which a line can stand; or the first one."""
        return [i for i, x in enumerate(self.starts) if self.text[x : x + 1] == "\n"] or [0]

    def found(self, encode: Encode, languages: Sequence[str], rng: random.Random) -> list[Event]:
        """The facts that the passage itself holds, each stated where its value stands."""
        events = []
        for fact in found_facts(self.text):
            beginning = self.text[fact.start : fact.value]
            value = self.text[fact.value : fact.end]
            question = CONTINUATIONS[rng.choice(languages)].format(beginning=beginning)
            place = bisect_left(self.starts, fact.value)
            events.append(Event(place, False, fact_of_text(beginning, value, question, encode)))
        return events


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
