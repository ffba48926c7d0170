"""Facts woven into rows of tokens: what is asked has been said, where the answers say."""

from __future__ import annotations

import random

import pytest
import torch

from ahn.facts import Event, FactMaker, Words, asked_later, forms_of, stated_anywhere, weave
from ahn.facts.rows import last_tokens

WORDS = Words(("river", "stone", "lamp", "garden", "clock"), ("Alice", "Boris", "Clara"))


def encode(text):
    """One token for each character."""
    return [ord(character) for character in text]


def decode(ids):
    return "".join(map(chr, ids.tolist()))


def maker(**options):
    return FactMaker(forms_of(**options), WORDS, encode)


def row_of(seed, length=2000, count=12):
    rng = random.Random(seed)
    text = torch.tensor(encode("a line of text\n" * (length // 15)))
    places = (text == ord("\n")).nonzero()[:, 0].tolist()
    facts = [maker().fact(rng) for _ in range(count)]
    stated = stated_anywhere(facts, places, rng)
    asked = asked_later(stated, places, len(text), rng, nearest=20)
    return text, facts, weave(text, [*stated, *asked])


@pytest.mark.parametrize("seed", range(20))
def test_a_value_is_said_where_the_answer_says_before_it_is_asked(seed):
    text, facts, (row, answers) = row_of(seed)
    assert answers
    for answer in answers:
        value = row[answer.start : answer.start + answer.length]
        assert torch.equal(value, row[answer.stated : answer.stated + answer.length])
        assert answer.stated + answer.length <= answer.start
    rest = decode(row)
    for fact in facts:
        rest = rest.replace(decode(torch.tensor(fact.stated.ids)), "")
        rest = rest.replace(decode(torch.tensor(fact.asked.ids)), "")
    assert set(rest.split("\n")) <= set(decode(text).split("\n"))


def test_the_same_seed_gives_the_same_row_and_another_does_not():
    assert torch.equal(row_of(3)[2][0], row_of(3)[2][0])
    assert decode(row_of(3)[2][0]) != decode(row_of(4)[2][0])


def test_the_newer_value_of_a_fact_is_the_answer():
    make, rng = maker(languages=["en"]), random.Random(0)
    first = make.fact(rng)
    second = next(
        x
        for x in (make.fact(rng, like=first) for _ in range(50))
        if x.stated.value != first.stated.value
    )
    text = torch.tensor(encode("x\n" * 40))
    events = [Event(60, False, second), Event(10, False, first), Event(80, True, first)]
    row, [answer] = weave(text, [*events, Event(30, True, second)][:3])
    assert row[answer.start : answer.start + answer.length].tolist() == second.stated.value
    _, [early, late] = weave(text, [*events, Event(30, True, second)])
    assert early.length == len(first.stated.value) and late == answer._replace(
        start=late.start, stated=late.stated
    )


def test_a_question_before_its_fact_is_left_out():
    fact = maker().fact(random.Random(0))
    events = [Event(2, True, fact), Event(5, False, fact)]
    row, answers = weave(torch.zeros(10, dtype=torch.long), events)
    assert answers == [] and len(row) == 10 + len(fact.stated.ids)


@pytest.mark.parametrize("length", [50, 700, 10_000])
def test_the_last_tokens_keep_their_answers(length):
    _, _, (row, answers) = row_of(5)
    cut, kept = last_tokens(row, answers, length, num_sinks=4)
    assert len(cut) == min(length, len(row))
    assert all(x.stated >= 4 for x in kept)
    for answer in kept:
        value = cut[answer.start : answer.start + answer.length]
        assert torch.equal(value, cut[answer.stated : answer.stated + answer.length])
    assert [x.distance for x in answers if x.stated >= len(row) - len(cut) + 4] == [
        x.distance for x in kept
    ]


def test_questions_stand_at_all_distances():
    """Distances even in their logarithm, and half of the questions at the end."""
    rng = random.Random(0)
    facts = [maker().fact(rng) for _ in range(4000)]
    places = list(range(0, 30_000, 10))
    events = stated_anywhere(facts, places, rng)
    stated = {id(x.fact): x.place for x in events}
    asked = asked_later(events, places, 30_000, rng)
    assert 0.75 < len(asked) / len(facts) < 0.85
    inner = [x.place - stated[id(x.fact)] for x in asked if x.place < 30_000]
    assert min(inner) >= 256
    for low, high in ((256, 1000), (1000, 4000), (4000, 30_000)):
        assert sum(low <= x < high for x in inner) > 0.15 * len(inner)
    assert 0.5 < sum(x.place == 30_000 for x in asked) / len(asked) < 0.8
