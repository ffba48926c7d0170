"""Facts that a text holds by itself."""

from __future__ import annotations

import pytest

from ahn.facts import found_facts


def parts(text):
    return [(text[x.start : x.value], text[x.value : x.end]) for x in found_facts(text)]


@pytest.mark.parametrize(
    ("text", "beginning", "value"),
    [
        ("timeout = 30\n", "timeout = ", "30"),
        ("\n  Colour: deep blue\n", "Colour: ", "deep blue"),
        ("A quark is a small particle.\n", "A quark is ", "a small particle"),
        ("they went to the town in 1812 and", "they went to the town in ", "1812"),
        ("in the end it was shown to Pip Gargery again", "was shown to ", "Pip Gargery"),
    ],
)
def test_each_kind_is_found(text, beginning, value):
    [(before, found)] = parts(text)
    assert before.endswith(beginning) and found == value


def test_what_is_said_twice_is_no_fact():
    assert parts("size = 3\nother = 4\nsize = 5\n") == [("other = ", "4")]


def test_a_text_without_facts_has_none():
    assert parts("nothing is here\nat all, you see\n" * 3) == []
