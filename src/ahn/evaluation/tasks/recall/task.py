"""Facts hidden at known depths of a long text, asked for at its end, in forms kept for tests.

A haystack of a given length holds the facts of one kind (`kinds.KINDS`), and ends by asking for all
of them in random order; earlier answers stay in the text. So one pass over a haystack scores all
its questions. As a chat, the haystack is the first message and each question a turn of its own.
`recall` counts a question where every token of the value is the likeliest; `acc` where the value is
likelier than those of the other facts, or than the older value of a fact that changed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import datasets

from ahn.evaluation.tasks.haystack import lines_of, stretch
from ahn.evaluation.tasks.recall.asked import TOKENS_A_FACT, as_chat, as_text, haystack
from ahn.evaluation.tasks.recall.kinds import KINDS, Item
from ahn.evaluation.texts import DEFAULT_TEXTS, named_texts, task_tokenizer, token_starts
from ahn.facts.forms import CODE
from ahn.facts.words import TEST_WORDS


def dataset(
    kind: str,
    language: str = CODE,
    chat: bool = False,
    lengths: Sequence[int] = (2048, 8192),
    depths: Sequence[float] = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0),
    haystacks: int = 4,
    seed: int = 0,
    texts: Sequence[str] = DEFAULT_TEXTS,
    tokenizer: str | None = None,
    pretrained: str | None = None,
    data: str | None = None,
    **_: Any,
) -> dict[str, datasets.Dataset]:
    """Questions about facts, generated from local texts.

    Args:
        kind: one of `KINDS`.
        language: of the forms, see `ahn.facts.forms`.
        chat: ask as the user of a chat, by the tokenizer's own template.
        lengths: of the prompts, in tokens (within some hundreds).
        depths, haystacks, seed, texts, tokenizer, pretrained, data: as for the needles.

    Raises:
        ValueError: the texts are shorter than a haystack, an option is out of range, or the
            tokenizer has no chat template.
    """
    _check(lengths, depths, haystacks)
    encoder = task_tokenizer(tokenizer, pretrained)
    lines, sizes = lines_of(encoder, "\n".join(text for _, text in named_texts(texts, data)))
    questions = []
    for length in lengths:
        for index in range(haystacks):
            chance = random.Random(f"{seed}/{kind}/{language}/{length}/{index}")
            hay = stretch(lines, sizes, length - TOKENS_A_FACT * len(depths), chance)
            items = KINDS[kind](depths, language, hay, chance)
            chance.shuffle(items)
            text = haystack(hay, items)
            pieces = (as_chat if chat else as_text)(encoder, text, items)
            for question in questions_of(pieces, items):
                tokens = len(token_starts(encoder, question["context"]))
                placed = {"length": length, "haystack": index, "tokens": tokens}
                questions.append({**question, **placed})
    return {"test": datasets.Dataset.from_list(questions)}


def questions_of(pieces: Sequence[str], items: Sequence[Item]) -> list[dict[str, Any]]:
    """One question per item; the context of each is all before it, earlier answers included."""
    parts = [
        piece + (items[index].choices[0] if index < len(items) else "")
        for index, piece in enumerate(pieces)
    ]
    questions = []
    for item, said in zip(items, accumulate(parts)):
        context = said.removesuffix(item.choices[0])
        line = item.stated[-1][1] if item.stated else item.before + item.choices[0]
        begin = context.find(line)
        evidence = None if begin < 0 else [begin, begin + len(line)]
        questions.append(
            {
                "context": context,
                "choices": list(item.choices),
                "gold": 0,
                "depth": item.depth,
                "evidence": evidence,  # characters of the context
            }
        )
    return questions


def _check(lengths: Sequence[int], depths: Sequence[float], haystacks: int) -> None:
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths: expected numbers of tokens, got {list(lengths)}")
    if not 2 <= len(depths) <= len(TEST_WORDS) // 3 or min(depths) < 0 or max(depths) > 1:
        raise ValueError(f"depths: expected two or more between 0 and 1, got {list(depths)}")
    if haystacks < 1:
        raise ValueError(f"haystacks: expected at least 1, got {haystacks}")
