"""Copies of the training text in which a package's own words are consistently exchanged.

A word that few packages use (`tokenlist`, `recv`, `mailbox`) says little beyond its package. In a
copy, a random half of such words is replaced by words of other packages: the same one everywhere
in the package, in names, comments and strings, whatever the case. What such a word will be can
then no longer be known by heart, only read in the context.
"""

from __future__ import annotations

import keyword
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from ahn.embedded.corpus import Document, topic

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_MIN_LETTERS = 3
_MAX_TOPICS = 4


def rare_words(documents: Iterable[Document]) -> list[str]:
    """The sorted lower-case words of at least 3 letters that at most 4 packages use."""
    topics: defaultdict[str, set[str]] = defaultdict(set)
    for name, text in documents:
        topics[topic(name)].update(_words(text))
    spread = Counter(word for words in topics.values() for word in words)
    candidates = (w for w, n in spread.items() if n <= _MAX_TOPICS and len(w) >= _MIN_LETTERS)
    return sorted(set(candidates).difference(keyword.kwlist))


def rename(
    documents: Sequence[Document], rare: Sequence[str], share: float, seed: str
) -> list[Document]:
    """The documents with a random `share` of each package's rare words exchanged.

    Args:
        documents: name and text; the name decides the package (`corpus.topic`).
        rare: words that may be exchanged, and their replacements: `rare_words` of the whole text.
        share: fraction of a package's rare words that are exchanged, in [0, 1].
        seed: the same seed gives the same copy.
    """
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, (name, _) in enumerate(documents):
        groups[topic(name)].append(index)
    renamed = list(documents)
    for name, indices in groups.items():
        texts = [documents[i][1] for i in indices]
        exchange = _exchange(texts, rare, share, random.Random(f"{seed}/{name}"))
        for index, text in zip(indices, texts):
            renamed[index] = (documents[index][0], _substitute(text, exchange))
    return renamed


def _exchange(
    texts: Iterable[str], rare: Sequence[str], share: float, rng: random.Random
) -> dict[str, str]:
    """New word of each exchanged word; no two words become one, and none becomes one in use."""
    used = set().union(*map(_words, texts))
    candidates = [word for word in rare if word in used]
    chosen = rng.sample(candidates, round(share * len(candidates)))
    others = [word for word in rare if word not in used]
    count = min(len(chosen), len(others))
    return dict(zip(chosen, rng.sample(others, count)))


def _words(text: str) -> set[str]:
    return {word.lower() for word in set(_WORD.findall(text))}


def _substitute(text: str, exchange: dict[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        word = match.group()
        new = exchange.get(word.lower())
        return word if new is None else _like(word, new)

    return _WORD.sub(replace, text)


def _like(word: str, new: str) -> str:
    """`new` in the case of `word`."""
    if word.islower():
        return new
    return new.upper() if word.isupper() and len(word) > 1 else new.capitalize()
