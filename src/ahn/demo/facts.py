"""Facts hidden in a long text and asked for at its end, in forms that no memory was trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ahn.evaluation import CHUNK, new_cache, stream_likeliest
from ahn.evaluation.tasks.haystack import lines_of, stretch
from ahn.evaluation.tasks.recall.asked import TOKENS_A_FACT, as_chat, as_text, haystack
from ahn.evaluation.tasks.recall.kinds import single
from ahn.facts.forms import CODE

MOST_FACTS = 16  # in one haystack
TEXT_A_FACT = 4 * TOKENS_A_FACT  # so that most of a short haystack is text


@dataclass(frozen=True)
class Haystack:
    """A text that states facts, all of them further back than the window, and ends by asking.

    Attributes:
        ids: `[1, T]`.
        values: which tokens each question asks for.
    """

    ids: Tensor
    values: list[slice]


def haystacks(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    length: int,
    budget: int,
    count: int,
    seed: int,
    chat: bool = False,
) -> list[Haystack]:
    """As many haystacks of a text, each of about `length` tokens or all that the text has.

    Facts stand at equal depths, the last of them two budgets before the end.

    Args:
        chat: the haystack is the first message of a chat in English, and each question a turn, by
            the tokenizer's own template; else it is source code that goes on to ask.
    """
    lines, sizes = lines_of(tokenizer, text)
    length = min(length, sum(sizes))
    facts = max(2, min(MOST_FACTS, length // TEXT_A_FACT))
    hay_length = max(1, length - TOKENS_A_FACT * facts)
    deepest = max(0.0, 1 - 2 * budget / hay_length)
    depths = [deepest * index / (facts - 1) for index in range(facts)]
    made = []
    for index in range(count):
        chance = random.Random(f"{seed}/{index}")
        hay = stretch(lines, sizes, hay_length, chance)
        items = single(depths, "en" if chat else CODE, hay, chance)
        chance.shuffle(items)
        pieces = (as_chat if chat else as_text)(tokenizer, haystack(hay, items), items)
        made.append(_encoded(tokenizer, pieces, [item.choices[0] for item in items]))
    return made


def facts_found(model: PreTrainedModel, hay: Haystack, chunk: int = CHUNK) -> list[bool]:
    """Of each question whether all tokens of its value are the likeliest, read with an empty cache.

    What the model looks at is decided by the context it is called in.
    """
    parts = stream_likeliest(model, hay.ids, prefill_chunk_size=chunk, cache=new_cache(model))
    likeliest = torch.cat(list(parts)).cpu()  # of tokens 1 to T - 1
    return [bool(likeliest[x.start - 1 : x.stop - 1].all()) for x in hay.values]


def _encoded(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], values: Sequence[str]
) -> Haystack:
    """Tokens of pieces and values in turn, each encoded by itself: a value has its own tokens."""
    ids: list[int] = []
    slices = []
    for piece, value in zip(pieces, values):
        ids += _encode(tokenizer, piece)
        said = _encode(tokenizer, value)
        slices.append(slice(len(ids), len(ids) + len(said)))
        ids += said
    return Haystack(torch.tensor([ids]), slices)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
