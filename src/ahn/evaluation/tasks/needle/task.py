"""Needles: facts in common words, hidden at known places of a long text, asked for at its end.

A haystack of a given length in tokens holds one needle at each depth, a line such as
`# the secret word of river is stone`. Its end asks for all of them, in random order, by the same
words; earlier answers stay in the text. So one pass over a haystack scores all its needles, and a
small model that can copy within its window can answer. A question is scored twice: among the
values of all needles of its haystack (`acc`, chance is one of them), and whether the right value
is the likeliest continuation at all (`recall`); `nats` is what it costs, the measure that moves
first.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import datasets

from ahn.evaluation.tasks.haystack import lines_of, places_of, stretch
from ahn.evaluation.texts import DEFAULT_TEXTS, named_texts, task_tokenizer, token_starts
from ahn.facts.words import TEST_WORDS as WORDS

FACT = "# the secret word of {key} is"


def dataset(
    lengths: Sequence[int] = (1024, 4096),
    depths: Sequence[float] = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0),
    haystacks: int = 4,
    seed: int = 0,
    texts: Sequence[str] = DEFAULT_TEXTS,
    tokenizer: str | None = None,
    pretrained: str | None = None,
    data: str | None = None,
    **_: Any,
) -> dict[str, datasets.Dataset]:
    """Questions about needles, generated from local texts.

    Args:
        lengths: of the prompts, in tokens (within some tens).
        depths: of the needles of each haystack, 0 its beginning, 1 its end.
        haystacks: of each length.
        seed: the same seed gives the same questions.
        texts: what the haystacks are cut from, see `ahn.evaluation.texts.named_texts`.
        tokenizer, pretrained: where the tokenizer is; lengths are measured with it.
        data: see `named_texts`.

    Raises:
        ValueError: the texts are shorter than a haystack, or an option is out of range.
    """
    _check(lengths, depths, haystacks)
    encoder = task_tokenizer(tokenizer, pretrained)
    lines, sizes = lines_of(encoder, "\n".join(text for _, text in named_texts(texts, data)))
    reserved = 2 * len(depths) * (1 + len(token_starts(encoder, _fact("word", "word"))))
    questions = []
    for length in lengths:
        for index in range(haystacks):
            chance = random.Random(f"{seed}/{length}/{index}")
            hay = stretch(lines, sizes, length - reserved, chance)
            for question in _questions(encoder.bos_token or "", hay, depths, chance):
                tokens = len(token_starts(encoder, question["context"]))
                questions.append(
                    {**question, "length": length, "haystack": index, "tokens": tokens}
                )
    return {"test": datasets.Dataset.from_list(questions)}


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Scores of one question; none where the sample was skipped."""
    nats = [-loglikelihood for loglikelihood, _ in results]
    if not all(map(math.isfinite, nats)):
        return {}
    gold = doc["gold"]
    return {
        "acc": float(min(range(len(nats)), key=nats.__getitem__) == gold),
        "recall": float(results[gold][1]),
        "nats": nats[gold],
    }


def _check(lengths: Sequence[int], depths: Sequence[float], haystacks: int) -> None:
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths: expected numbers of tokens, got {list(lengths)}")
    if not 2 <= len(depths) <= len(WORDS) // 2 or min(depths) < 0 or max(depths) > 1:
        raise ValueError(f"depths: expected two or more between 0 and 1, got {list(depths)}")
    if haystacks < 1:
        raise ValueError(f"haystacks: expected at least 1, got {haystacks}")


def _questions(
    text: str, hay: Sequence[tuple[str, int]], depths: Sequence[float], chance: random.Random
) -> list[dict[str, Any]]:
    """One question per needle, in the order they are asked; `text` is what all begin with."""
    words = chance.sample(WORDS, 2 * len(depths))
    keys, values = words[: len(depths)], words[len(depths) :]
    places = places_of(hay, depths)
    facts = {}
    for line in range(len(hay) + 1):
        for needle in (i for i, place in enumerate(places) if place == line):
            fact = _fact(keys[needle], values[needle])
            facts[needle] = (len(text), len(text) + len(fact))
            text += fact + "\n"
        text += hay[line][0] + "\n" if line < len(hay) else "\n"
    questions = []
    for needle in chance.sample(range(len(depths)), len(depths)):
        text += FACT.format(key=keys[needle])
        questions.append(
            {
                "context": text,
                "choices": [f" {value}" for value in values],
                "gold": needle,
                "depth": float(depths[needle]),
                "evidence": list(facts[needle]),  # characters of the context
            }
        )
        text += f" {values[needle]}\n"
    return questions


def _fact(key: str, value: str) -> str:
    return f"{FACT.format(key=key)} {value}"
