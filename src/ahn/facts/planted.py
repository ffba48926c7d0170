"""Facts made of words and numbers by a form, as token ids."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ahn.facts.forms import NAME, NUMBER, Form, filled, with_key
from ahn.facts.words import Words

Encode = Callable[[str], list[int]]  # token ids of a text, without special tokens
FEWEST_DIGITS, MOST_DIGITS = 3, 5


class Said(NamedTuple):
    """Token ids of a line: up to the value, the value, and after it."""

    before: list[int]
    value: list[int]
    after: list[int]

    @property
    def ids(self) -> list[int]:
        """The whole line."""
        return [*self.before, *self.value, *self.after]


@dataclass(frozen=True)
class Fact:
    """A fact ready to be put into a row of tokens.

    Attributes:
        key: facts of the same form and key are about the same thing: the later one holds.
        stated, asked: lines of the text; each begins with a line end.
        chat: question, the answer up to the value, the value, what follows it.
    """

    key: tuple[str, str]
    stated: Said
    asked: Said
    chat: tuple[str, str, str, str]


@dataclass(frozen=True)
class FactMaker:
    """Makes facts of words in the forms it is given.

    Attributes:
        forms: one is drawn for each fact.
        words: of which keys and values are drawn.
        encode: the tokenizer, without special tokens.
    """

    forms: Sequence[Form]
    words: Words
    encode: Encode = field(repr=False)

    def fact(self, rng: random.Random, like: Fact | None = None) -> Fact:
        """A fact drawn by `rng`; `like` another one, it says something else of the same key."""
        if like is None:
            form, key = rng.choice(self.forms), rng.choice(self.words.common)
        else:
            form = next(x for x in self.forms if x.stated == like.key[0])
            key = like.key[1]
        return self.made(form, key, drawn_value(form, self.words, rng))

    def made(self, form: Form, key: str, value: str) -> Fact:
        """The fact of a form, key and value."""
        answer = filled(form.asked, key, value)
        return Fact(
            key=(form.stated, key),
            stated=self._said("\n" + form.stated, key, value),
            asked=self._said("\n" + form.asked, key, value),
            chat=(with_key(form.question, key), *answer),
        )

    def _said(self, line: str, key: str, value: str) -> Said:
        return Said(*(self.encode(part) if part else [] for part in filled(line, key, value)))


def drawn_value(form: Form, words: Words, rng: random.Random) -> str:
    """A value of the form's kind."""
    if form.value == NUMBER:
        digits = rng.randint(FEWEST_DIGITS, MOST_DIGITS)
        return str(rng.randrange(10 ** (digits - 1), 10**digits))
    return rng.choice(words.names if form.value == NAME else words.common)


def fact_of_text(beginning: str, value: str, question: str, encode: Encode) -> Fact:
    """A fact that the text holds by itself: nothing states it, and its own beginning asks for it.

    Args:
        question: what the user of a chat asks.
    """
    stem = beginning.rstrip(" ")
    said = beginning[len(stem) :] + value
    return Fact(
        key=("", beginning),
        stated=Said([], [], []),
        asked=Said(encode("\n" + stem), encode(said), []),
        chat=(question, stem, said, ""),
    )
