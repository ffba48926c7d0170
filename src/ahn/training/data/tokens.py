"""Samples become token ids and labels; in a conversation only the answers are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ahn.io.text import NEAR, encode_after, special_tokens
from ahn.training.data.chat_template import ChatTemplate, Part
from ahn.training.data.cutoff import Turn, within
from ahn.training.data.fact_rows import FactRows
from ahn.training.data.formats import Sample, standardized
from ahn.training.data.sources import Source
from ahn.training.data.templates import named_template, own_template
from ahn.training.losses import IGNORE


class Document(NamedTuple):
    """Token ids, their labels, and how many tokens of the sample were cut off."""

    ids: list[int]
    labels: list[int]
    cut: int = 0

    @property
    def is_labelled(self) -> bool:
        return any(label != IGNORE for label in self.labels)


@dataclass(frozen=True)
class Encoder:
    """Tokenizes samples. It can be pickled, as workers and the cache of `datasets` require.

    Attributes:
        template: chat template for conversations, see `training_template`; None where none is
            known.
        cutoff_len: maximum tokens of a document. Prompts and answers that are longer together are
            shortened as in LLaMA-Factory, longer plain text is split into several documents.
        facts: makes the rows of plain text, some of which ask for facts; None has plain rows.
    """

    tokenizer: PreTrainedTokenizerBase
    source: Source
    template: str | None
    cutoff_len: int
    text_column: str = "text"
    facts: FactRows | None = None

    def documents(self, row: Sample) -> list[tuple[list[int], list[int]]]:
        """Token ids and labels of each document of a sample; none of an empty sample.

        Raises ValueError naming the source and what is wrong with the sample.
        """
        return [(document.ids, document.labels) for document in self.encoded(row)]

    def encoded(self, row: Sample, where: str = "") -> list[Document]:
        """As `documents`, with what was cut off; `where` says which sample it is."""
        try:
            sample = standardized(row, self.source, self.text_column)
            if "text" in sample:
                return self._text(sample["text"])
            turns = self._talk(sample) if "messages" in sample else [self._completion(sample)]
        except ValueError as error:
            raise ValueError(f"{self.source.name}: {where}{error}") from error
        return [Document(*within(turns, self.cutoff_len))] if turns else []

    def text_of(self, row: Sample) -> str | None:
        """The plain text of a sample; None where it is another kind."""
        return standardized(row, self.source, self.text_column).get("text")

    def _text(self, text: str) -> list[Document]:
        """Documents of at most `cutoff_len` tokens; an end token ends the text."""
        if not text:
            return []
        if self.facts is not None:
            return [Document(ids, labels) for ids, labels in self.facts.rows(text)]
        before, after = special_tokens(self.tokenizer)
        ids = [*before, *encode_after(self.tokenizer, text, ""), *self._ended(after)]
        limit = self.cutoff_len
        return [Document(*(ids[i : i + limit],) * 2) for i in range(0, len(ids), limit)]

    def _completion(self, sample: Sample) -> Turn:
        """A prompt as a tokenizer begins a text, and the completion that goes on after it."""
        from trl.data_utils import common_prefix_length

        before, after = special_tokens(self.tokenizer)
        prompt = encode_after(self.tokenizer, sample["prompt"], "")
        ids = encode_after(self.tokenizer, sample["prompt"] + sample["completion"], "")
        known = common_prefix_length(prompt, ids)
        return Turn([*before, *ids[:known]], [*ids[known:], *self._ended(after)])

    def _ended(self, after: list[int]) -> list[int]:
        """What ends a text: what the tokenizer puts there, one end token in any case."""
        end = self.tokenizer.eos_token_id
        return after if end is None or after[-1:] == [end] else [*after, end]

    def _talk(self, sample: Sample) -> list[Turn]:
        """The turns of a conversation; a question at its end that nobody answers is left out."""
        if self.template is None:
            raise ValueError(
                "expected --template for conversations, the tokenizer has no chat template"
            )
        template = ChatTemplate.of(self.template, self.tokenizer)
        parts = template.parts(sample["messages"], sample["tools"], sample["prompt_messages"])
        turns, past = [], ""
        prompt: list[int] = []
        for part in parts:
            ids = self._part(part, past)
            past = "" if self._ends(part.text) else (past + part.text)[-NEAR:]
            if part.is_answer:
                turns.append(Turn(prompt, ids, part.is_learnt))
                prompt = []
            else:
                prompt = prompt + ids
        return turns or [Turn(prompt, [], is_learnt=False)]

    def _part(self, part: Part, past: str) -> list[int]:
        """Ids of a stretch of a conversation; a text begins anew after a token that begins one."""
        begin, ids = self.tokenizer.bos_token, []
        for number, text in enumerate(part.text.split(begin) if begin else [part.text]):
            if number:
                ids.append(self.tokenizer.bos_token_id)
                past = ""
            ids += encode_after(self.tokenizer, text, past) if text else []
        return ids

    def _ends(self, text: str) -> bool:
        """Whether a stretch of a conversation ends a text, so that what follows begins one."""
        tokens = filter(None, (self.tokenizer.bos_token, self.tokenizer.eos_token))
        return text.endswith(tuple(tokens))


def training_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str | None:
    """A chat template in which answers can be told from prompts, so that they can be labelled.

    Args:
        name: a file, or one of `named_templates`; None takes the tokenizer's own template.

    Returns:
        None where the tokenizer has none.

    Raises:
        ValueError: an unknown name, or a template whose answers cannot be told from prompts.
    """
    template = own_template(tokenizer) if name is None else named_template(name)
    if template is not None:
        ChatTemplate.of(template, tokenizer).check()
    return template
