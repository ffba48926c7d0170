"""Facts in a text and questions about them: forms, words, and rows of tokens that hold both."""

from ahn.facts.forms import FORMS, Form, forms_of
from ahn.facts.found import Found, found_facts
from ahn.facts.planted import Fact, FactMaker
from ahn.facts.rows import Answer, Event, asked_later, stated_anywhere, weave
from ahn.facts.words import Words, words_of

__all__ = [
    "FORMS",
    "Answer",
    "Event",
    "Fact",
    "FactMaker",
    "Form",
    "Found",
    "Words",
    "asked_later",
    "forms_of",
    "found_facts",
    "stated_anywhere",
    "weave",
    "words_of",
]
