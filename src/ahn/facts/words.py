"""Words and names of a text, of which facts are made: so they look like what is around them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

TEST_WORDS = tuple(Path(__file__).with_name("test_words.txt").read_text().split())
"""Common English words that tests ask for, and of which no fact is made to train on."""

LETTERS = r"[^\W\d_]"
_WORD = re.compile(rf"(?<![\w'’]){LETTERS}{{3,10}}(?![\w'’])")  # noqa: RUF001
FEWEST, MOST = 32, 6000
COMMONEST = 100  # words such as "the" that make no fact


@dataclass(frozen=True)
class Words:
    """What facts are made of.

    Attributes:
        common: words in lower case; names: capitalised ones. Neither is empty.
    """

    common: tuple[str, ...]
    names: tuple[str, ...]


def words_of_tests() -> Words:
    """What tests make facts of."""
    return Words(TEST_WORDS, tuple(word.capitalize() for word in TEST_WORDS))


def words_of(texts: Iterable[str], without: Container[str] = ()) -> Words:
    """The words and names of some texts, the most frequent ones but for those like "the".

    A word counts as a name where it is never written in lower case. Texts without a name give
    their words, capitalised.

    Args:
        without: lower-case words that are left out, to be asked for in a test.

    Raises ValueError where the texts have too few words.
    """
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    common = [x for x, _ in counts.most_common() if x.islower() and x not in without]
    if len(common) < FEWEST:
        raise ValueError(f"text: expected {FEWEST} words to make facts of, got {len(common)}")
    names = [x for x, _ in counts.most_common() if x.istitle() and x.lower() not in counts]
    names = [x for x in names if x.lower() not in without]
    skipped = min(COMMONEST, len(common) - FEWEST)
    common = common[skipped : skipped + MOST]
    return Words(tuple(common), tuple(names[:MOST]) or tuple(x.capitalize() for x in common))
