"""Kinds of questions: what is stated at which depth of a text, and what is asked at its end."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ahn.evaluation.tasks.haystack import Hay
from ahn.facts import Form, forms_of
from ahn.facts.forms import CODE, CONTINUATIONS, filled, with_key
from ahn.facts.planted import drawn_value
from ahn.facts.words import words_of_tests

FEWEST_WORDS = 6  # of a line of the text that is asked for by its beginning


@dataclass(frozen=True)
class Item:
    """A question about facts of a text.

    Attributes:
        stated: depths, and the lines that stand there; the last one holds the answer. None is
            stated where the text itself holds it.
        question: what the user of a chat asks.
        before, after: of the line that asks, around the value.
        choices: values to choose from, the right one first; each with the space before it.
        depth: of the line that holds the answer.
    """

    stated: tuple[tuple[float, str], ...]
    question: str
    before: str
    after: str
    choices: tuple[str, ...]
    depth: float


# Two facts in a row, and a question that needs both: a, b and c stand for three words.
CHAINS = {
    CODE: ("# {a} -> {b}", "# the secret word of {b} is {c}", "What is the secret word of {b}?",
           "# the secret word of what {a} points to is {c}"),
    "en": ("{A} lives in the house of {B}.", "The secret code of {B} is {c}.",
           "What is the secret code of the one in whose house {A} lives?",
           "The secret code of the one in whose house {A} lives is {c}."),
}  # fmt: skip


def single(depths: Sequence[float], language: str, hay: Hay, chance: random.Random) -> list[Item]:
    """One fact at each depth, all asked for: several at once."""
    pairs = _pairs(depths, language, chance)
    return [
        _item(form, key, value, [depth], [other for *_, other in _rotated(pairs, index)])
        for index, (depth, (form, key, value)) in enumerate(zip(depths, pairs))
    ]


def changed(depths: Sequence[float], language: str, hay: Hay, chance: random.Random) -> list[Item]:
    """Each fact is stated at half of its depth, and anew with another value: the newer must win."""
    items = []
    for depth, (form, key, value) in zip(depths, _pairs(depths, language, chance)):
        older = value
        while older == value:
            older = drawn_value(form, words_of_tests(), chance)
        item = _item(form, key, value, [depth], [older])
        before = "".join(filled(form.stated, key, older))
        items.append(
            Item(((depth / 2, before), *item.stated), item.question, item.before, item.after,
                 item.choices, depth)
        )  # fmt: skip
    return items


def hidden(depths: Sequence[float], language: str, hay: Hay, chance: random.Random) -> list[Item]:
    """Lines of the text itself, that nothing marks as facts, are asked for by their beginnings."""
    chosen: list[str] = []
    for depth in depths:
        chosen.append(_line_at(hay, depth, chosen))
    words = [line.split() for line in chosen]
    values = [f" {x[len(x) // 2]}" for x in words]
    items = []
    for index, (depth, line) in enumerate(zip(depths, words)):
        beginning = " ".join(line[: len(line) // 2])
        others = {x for x in values if x != values[index]}
        question = CONTINUATIONS[language].format(beginning=beginning)
        choices = (values[index], *sorted(others))
        items.append(Item((), question, beginning, "", choices, depth))
    return items


def chained(depths: Sequence[float], language: str, hay: Hay, chance: random.Random) -> list[Item]:
    """Two facts, the first at half the depth of the second; the question needs both."""
    if language not in CHAINS:
        raise ValueError(f"language: expected one of {', '.join(CHAINS)}, got {language!r}")
    first, second, question, asked = CHAINS[language]
    words = chance.sample(words_of_tests().common, 3 * len(depths))
    triples = list(zip(words[::3], words[1::3], words[2::3]))
    items = []
    for index, (depth, (a, b, c)) in enumerate(zip(depths, triples)):
        names = {"a": a, "b": b, "c": c, "A": a.capitalize(), "B": b.capitalize()}
        before, after = asked.format(**{**names, "c": "{c}"}).split(" {c}")
        others = [f" {other}" for *_, other in _rotated(triples, index)]
        items.append(
            Item(
                ((depth / 2, first.format(**names)), (depth, second.format(**names))),
                question.format(**names), before, after, (f" {c}", *others), depth,
            )
        )  # fmt: skip
    return items


Kind = Callable[[Sequence[float], str, Hay, random.Random], list[Item]]
KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (single, changed, hidden, chained)}


def _pairs(
    depths: Sequence[float], language: str, chance: random.Random
) -> list[tuple[Form, str, str]]:
    """Form, key and value of as many facts, in held-out forms; keys and values differ."""
    forms, words = forms_of([language], held_out=True), words_of_tests()
    if not forms:
        raise ValueError(f"language: expected one with forms for tests, got {language!r}")
    keys = chance.sample(words.common, len(depths))
    pairs: list[tuple[Form, str, str]] = []
    for key in keys:
        form, value = chance.choice(forms), key
        while value in {*keys, *(other for *_, other in pairs)}:
            value = drawn_value(form, words, chance)
        pairs.append((form, key, value))
    return pairs


def _item(form: Form, key: str, value: str, depths: Sequence[float], others: Sequence[str]) -> Item:
    before, said, after = filled(form.asked, key, value)
    space = said.removesuffix(value)
    return Item(
        stated=tuple((depth, "".join(filled(form.stated, key, value))) for depth in depths),
        question=with_key(form.question, key),
        before=before,
        after=after,
        choices=(said, *(space + other for other in others)),
        depth=depths[-1],
    )


def _rotated(items: Sequence, index: int) -> list:
    """All others, in turn."""
    return [*items[index + 1 :], *items[:index]]


def _line_at(hay: Hay, depth: float, taken: Sequence[str]) -> str:
    """The line nearest to a depth that is long enough and whose beginning the text has once."""
    text = "\n".join(line for line, _ in hay)
    order = sorted(range(len(hay)), key=lambda i: abs(i - depth * (len(hay) - 1)))
    for index in order:
        line = hay[index][0].strip()
        words = line.split()
        beginning = " ".join(words[: len(words) // 2])
        once = text.count(beginning) == 1 and line not in taken
        if len(words) >= FEWEST_WORDS and once:
            return line
    raise ValueError(f"texts: expected a line of {FEWEST_WORDS} words that stands once, got none")
