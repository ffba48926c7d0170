"""What stands around the words of a talk: a chat template's text, as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ahn.io.text import encode_after, encode_further, special_tokens

NOTHING, OPEN, ANSWERED = "nothing", "open", "answered"  # where a talk can be
WORDS = ("wordoneofuser", "wordoneofassistant", "wordtwoofuser")  # that no template contains
PARAGRAPH = "\n\n"  # between what a user gives in one turn
# What is read is text throughout: what looks like a token of the template is none.
AS_TEXT = {"split_special_tokens": True}


@dataclass(frozen=True)
class Turns:
    """The text before and after what a user says.

    Attributes:
        opening: before the first words, with the system prompt.
        answering: after the user's words, before the answer.
        reopening: after an answer, before the user's next words.
        between: between two texts that a user gives in one turn.
        first: ids of the tokens that begin a text, where no template writes them.
    """

    tokenizer: PreTrainedTokenizerBase
    opening: str = ""
    answering: str = ""
    reopening: str = ""
    between: str = ""
    first: tuple[int, ...] = ()

    @classmethod
    def plain(cls, tokenizer: PreTrainedTokenizerBase) -> Turns:
        """No template: what is said continues the text."""
        return cls(tokenizer, first=tuple(special_tokens(tokenizer)[0]))

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> Turns:
        """By the tokenizer's chat template.

        Raises ValueError where it has none, takes no system prompt, or writes the second turn
        otherwise than the first.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "chat template: expected a tokenizer that has one, got one without; with plain "
                "what is asked continues the text"
            )
        roles = ("user", "assistant", "user")
        messages = [{"role": r, "content": word} for r, word in zip(roles, WORDS)]
        before = [] if system is None else [{"role": "system", "content": system}]
        opening, answering = _cut(_rendered(tokenizer, [*before, messages[0]]), WORDS[:1])
        *_, reopening, end = _cut(_rendered(tokenizer, before + messages), WORDS)
        if end != answering or (system is not None and system.strip() not in opening):
            raise ValueError(
                "chat template: expected one that writes the system prompt and every turn alike, "
                "got another"
            )
        return cls(tokenizer, opening, answering, reopening, PARAGRAPH)

    def before(self, place: str, past: str) -> tuple[list[int], str]:
        """Token ids before what a user gives at a place, and the text that then stands before it.

        Args:
            past: the last characters so far.
        """
        if place == NOTHING:
            return [*self.first, *self._encoded(self.opening, "")], self.opening
        text = self.reopening if place == ANSWERED else self.between
        return self._encoded(text, past), past + text

    def given(self, texts: Iterable[str], past: str) -> Iterator[Tensor]:
        """Token ids `[1, n]` of what a user gives, after `past`."""
        return encode_further(self.tokenizer, texts, past, **AS_TEXT)

    def after(self, past: str) -> list[int]:
        """Token ids between a user's words and the answer."""
        return self._encoded(self.answering, past)

    def ends(self) -> set[int]:
        """The token by which the template ends an answer, if it is a special one."""
        ids = self._encoded(self.reopening, "")[:1]
        return {x for x in ids if x in self.tokenizer.all_special_ids}

    def _encoded(self, text: str, past: str) -> list[int]:
        return encode_after(self.tokenizer, text, past) if text else []


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise ValueError(f"chat template: expected one that takes {roles}, got: {error}") from error


def _cut(text: str, words: Iterable[str]) -> list[str]:
    """The text before, between and after words that occur once each, in this order."""
    parts = []
    for word in words:
        before, found, text = text.partition(word)
        if not found or word in text:
            raise ValueError("chat template: expected one that writes each message once, got other")
        parts.append(before)
    return [*parts, text]
