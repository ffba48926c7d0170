"""A long text with facts at their depths, and what asks for them: as text, or as a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ahn.evaluation.tasks.haystack import Hay, places_of
from ahn.evaluation.tasks.recall.kinds import Item

MARK = "\u241e"  # stands for the values while a chat template is filled in
TOKENS_A_FACT = 48  # stated and asked for, about


def haystack(hay: Hay, items: Sequence[Item]) -> str:
    """The lines of a text with the facts at their depths."""
    stated = sorted((x for item in items for x in item.stated), key=lambda x: x[0])
    places = places_of(hay, [depth for depth, _ in stated])
    text = []
    for line in range(len(hay) + 1):
        text += [fact for place, (_, fact) in zip(places, stated) if place == line]
        text += [hay[line][0]] if line < len(hay) else []
    return "\n".join(text) + "\n"


def as_text(encoder: Any, text: str, items: Sequence[Item]) -> list[str]:
    """What stands before each value, and after the last one, of a text that goes on to ask."""
    begins = [f"{encoder.bos_token or ''}{text}\n", *(f"{item.after}\n" for item in items)]
    asked = [*(item.before for item in items), ""]
    return [begin + before for begin, before in zip(begins, asked)]


def as_chat(encoder: Any, text: str, items: Sequence[Item]) -> list[str]:
    """The same of a conversation about the text; ValueError for a tokenizer without a template."""
    if encoder.chat_template is None:
        raise ValueError("tokenizer: expected a chat template for this task, got none")
    messages = []
    for index, item in enumerate(items):
        asked = item.question if index else f"{text}\n{item.question}"
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": f"{item.before}{MARK}{item.after}"})
    return str(encoder.apply_chat_template(messages, tokenize=False)).split(MARK)
