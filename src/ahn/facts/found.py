"""Facts that a text holds by itself: keys with values, definitions, numbers and names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_KEY_VALUE = re.compile(r"^[ \t]*[\w.\-]{3,40}[ \t]*(?:=|:|->)[ \t]*(?P<value>\S.{0,39})$", re.M)
_DEFINITION = re.compile(
    r"^(?:An?|The)? ?\w[\w \-]{2,30}? (?:is|are|was|means|ist|est|es) (?P<value>\w[^.\n]{2,39})\.",
    re.M,
)
# In a sentence: at least four words, then a number or a name.
_NUMBER = re.compile(r"(?:\w[\w',]*[ \n]){4,12}(?P<value>\d[\d.,]*\d|\d)\b")
_NAME = re.compile(r"(?:\b[a-z][\w',]*[ \n]){4,12}(?P<value>[A-Z][a-z]+(?: [A-Z][a-z]+)*)")
KINDS = (_KEY_VALUE, _DEFINITION, _NUMBER, _NAME)


class Found(NamedTuple):
    """A fact of a text, in characters: it is asked for by the text from `start` to `value`."""

    start: int
    value: int
    end: int


def found_facts(text: str) -> list[Found]:
    """The facts of a text, in order: those whose beginning the text has only once.

    So the value has been said where it is asked for, and nothing else has been said for it.
    """
    candidates = sorted({fact.start: fact for fact in _candidates(text)}.values())
    beginnings = Counter(text[x.start : x.value] for x in candidates)
    once = (x for x in candidates if beginnings[text[x.start : x.value]] == 1)
    return [x for x in once if text.count(text[x.start : x.value]) == 1]


def _candidates(text: str) -> Iterator[Found]:
    for kind in KINDS:
        for match in kind.finditer(text):
            value, end = match.span("value")
            yield Found(match.start(), value, end)
