"""Samples become token ids and labels; in a conversation only the answers are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ahn.training.data.formats import Sample, standardized
from ahn.training.data.sources import Source
from ahn.training.losses import IGNORE

ALIASES = {"qwen": "qwen2_5"}  # the name in the original code


@dataclass(frozen=True)
class Encoder:
    """Tokenizes samples. It can be pickled, as workers and the cache of `datasets` require.

    Attributes:
        template: chat template that marks answers; None where none is known.
        cutoff_len: maximum tokens of a document. Longer conversations are truncated, longer plain
            text is split into several documents.
    """

    tokenizer: PreTrainedTokenizerBase
    source: Source
    template: str | None
    cutoff_len: int
    text_column: str = "text"

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        """Columns of a batch of samples become columns of documents."""
        documents = []
        for values in zip(*rows.values()):
            documents += self.documents(dict(zip(rows, values)))
        ids, labels = zip(*documents) if documents else ((), ())
        return {"input_ids": list(ids), "labels": list(labels)}

    def documents(self, row: Sample) -> list[tuple[list[int], list[int]]]:
        """Token ids and labels of each document of a sample."""
        sample = standardized(row, self.source, self.text_column)
        limit = self.cutoff_len
        if "text" in sample:
            ids = [*self.tokenizer(sample["text"])["input_ids"], *self._eos()]
            return [(ids[i : i + limit],) * 2 for i in range(0, len(ids), limit)]
        ids, labels = (
            self._conversation(sample) if "messages" in sample else self._completion(sample)
        )
        return [(ids[:limit], labels[:limit])]

    def _conversation(self, sample: Sample) -> tuple[list[int], list[int]]:
        if self.template is None:
            raise ValueError(
                f"{self.source.name}: expected --template for conversations, the tokenizer has no "
                "chat template that marks answers"
            )
        encoded: Any = self.tokenizer.apply_chat_template(
            sample["messages"],
            tools=sample.get("tools"),
            chat_template=self.template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, answers = encoded["input_ids"], encoded["assistant_masks"]
        return ids, [i if answer else IGNORE for i, answer in zip(ids, answers)]

    def _completion(self, sample: Sample) -> tuple[list[int], list[int]]:
        from trl.data_utils import common_prefix_length

        prompt = self.tokenizer(sample["prompt"])["input_ids"]
        ids = self.tokenizer(sample["prompt"] + sample["completion"])["input_ids"] + self._eos()
        known = common_prefix_length(prompt, ids)
        return ids, [IGNORE] * known + ids[known:]

    def _eos(self) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return [] if eos is None else [eos]


def training_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str | None:
    """A chat template that marks answers with `{% generation %}`, so that they can be labelled.

    Args:
        name: a file, or a name that TRL knows; None takes the tokenizer's own template.

    Returns:
        None where the tokenizer has none.

    Raises:
        ValueError: an unknown name, or a template without marks that TRL cannot add them to.
    """
    template = _own_template(tokenizer) if name is None else _named_template(name)
    if template is None:
        return None
    if "generation %}" not in template and "generation -%}" not in template:
        raise ValueError(
            "template: expected {% generation %} marks around answers, got a chat template without"
        )
    return template


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's template, with TRL's marks where TRL knows it."""
    from trl.chat_template_utils import get_training_chat_template

    if tokenizer.chat_template is None:
        return None
    try:
        return get_training_chat_template(tokenizer) or str(tokenizer.chat_template)
    except ValueError:  # a template that TRL does not know
        return str(tokenizer.chat_template)


def _named_template(name: str) -> str:
    """The template of a file, or TRL's of that name."""
    from trl import chat_template_utils

    if Path(name).is_file():
        return Path(name).read_text(encoding="utf-8")
    suffix = "_training_chat_template"
    templates = {
        key.removesuffix(suffix): value
        for key, value in vars(chat_template_utils).items()
        if key.endswith(suffix) and isinstance(value, str)
    }
    key = ALIASES.get(name, name)
    if key not in templates:
        names = ", ".join(sorted(templates))
        raise ValueError(f"template: expected a file or one of {names}, got {name!r}")
    return templates[key]
