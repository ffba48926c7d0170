"""Forms and words of facts: each form says and asks, held-out ones stay apart, words fit."""

from __future__ import annotations

import random

import pytest

from ahn.facts import FORMS, FactMaker, forms_of, words_of
from ahn.facts.forms import LANGUAGES, NAME, NUMBER
from ahn.facts.words import TEST_WORDS

TEXT = " ".join(
    f"the {a}{b}er walked to Old{a} and saw {b}{a}ing things"
    for a in ("bar", "lin", "mos", "tur", "fel", "gro")
    for b in ("dan", "ket", "sol", "wim", "pra", "ned")
)
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stated[:30])


@each_form
def test_a_form_states_and_asks_once(form):
    assert form.stated.count("{value}") == form.asked.count("{value}") == 1
    assert "{value}" not in form.question
    assert all("key}" in part.lower() for part in (form.stated, form.question, form.asked))


@each_form
def test_a_fact_is_the_form_filled_in(form):
    make = FactMaker([form], words_of([TEXT]), lambda text: list(text))
    fact = make.fact(random.Random(0))
    key, value = fact.key[1], "".join(fact.stated.value).strip()
    names = {"key": key, "Key": key.capitalize(), "KEY": key.upper(), "value": value}
    assert "".join(fact.stated.ids) == "\n" + form.stated.format(**names)
    assert "".join(fact.asked.ids) == "\n" + form.asked.format(**names)
    question, before, said, after = fact.chat
    assert question == form.question.format(**names)
    assert before + said + after == form.asked.format(**names)
    assert value.isdigit() if form.value == NUMBER else value.isalpha()
    assert form.value != NAME or value.istitle()


def test_another_value_of_the_same_key():
    make, rng = FactMaker(forms_of(), words_of([TEXT]), list), random.Random(0)
    fact = make.fact(rng)
    others = [make.fact(rng, like=fact) for _ in range(20)]
    assert {x.key for x in others} == {fact.key}
    assert len({"".join(x.stated.value) for x in others}) > 1


def test_held_out_forms_are_never_trained_on():
    trained, held_out = forms_of(), forms_of(held_out=True)
    assert not set(trained) & set(held_out) and set(trained + held_out) == set(FORMS)
    beginnings = {form.stated.split("{")[0] for form in trained} - {""}
    assert not beginnings & {form.stated.split("{")[0] for form in held_out}
    assert {form.language for form in held_out} >= {"en", "code"}


def test_languages_are_chosen_by_name():
    assert {form.language for form in forms_of(["de", "fr"])} == {"de", "fr"}
    assert len(LANGUAGES) >= 6
    with pytest.raises(ValueError, match=r"language: expected one of en, .*, got 'xx'"):
        forms_of(["en", "xx"])


def test_words_are_those_of_the_text_and_none_that_is_kept_for_tests():
    words = words_of([TEXT, " ".join(TEST_WORDS)], without=frozenset(TEST_WORDS))
    assert not set(words.common) & set(TEST_WORDS)
    assert all(word in TEXT for word in words.common + words.names)
    assert all(name.istitle() for name in words.names) and "Oldbar" in words.names
    assert words_of([TEXT]) == words_of([TEXT])


def test_a_text_without_names_gives_capitalised_words():
    words = words_of([TEXT.lower()])
    assert words.names and all(name.lower() in TEXT.lower() for name in words.names)


def test_a_text_with_too_few_words_is_refused():
    with pytest.raises(ValueError, match="text: expected 32 words to make facts of, got 2"):
        words_of(["one two"])
