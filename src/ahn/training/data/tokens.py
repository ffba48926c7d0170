"""Samples become token ids and labels; of a conversation only the answers are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ahn.training.data.formats import Sample, unified
from ahn.training.data.sources import Source
from ahn.training.losses import IGNORE

ALIASES = {"qwen": "qwen2_5"}  # the original's name


@dataclass(frozen=True)
class Encoder:
    """Tokenises samples; picklable, so that workers and the cache of `datasets` can use it.

    Attributes:
        template: chat template that marks answers; None where none is known.
        cutoff_len: longest document. What is longer is cut, or split where it is plain text.
    """

    tokenizer: PreTrainedTokenizerBase
    source: Source
    template: str | None
    cutoff_len: int
    text_column: str = "text"

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        """Columns of samples become columns of documents."""
        documents = []
        for values in zip(*rows.values()):
            documents += self.documents(dict(zip(rows, values)))
        ids, labels = zip(*documents) if documents else ((), ())
        return {"input_ids": list(ids), "labels": list(labels)}

    def documents(self, row: Sample) -> list[tuple[list[int], list[int]]]:
        """Ids and labels of the documents that a sample holds."""
        sample = unified(row, self.source, self.text_column)
        limit = self.cutoff_len
        if "text" in sample:
            ids = [*self.tokenizer(sample["text"])["input_ids"], *self._end()]
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
        ids = self.tokenizer(sample["prompt"] + sample["completion"])["input_ids"] + self._end()
        known = common_prefix_length(prompt, ids)
        return ids, [IGNORE] * known + ids[known:]

    def _end(self) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [] if end is None else [end]


def training_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str | None:
    """A chat template with marks around answers, so that they alone are labelled.

    Args:
        name: None takes the tokenizer's own; else a file, or a name that TRL knows.

    Returns:
        None where the tokenizer has none.

    Raises:
        ValueError: an unknown name, or a template without marks that TRL cannot give them to.
    """
    from trl import chat_template_utils as known

    template: Any
    if name is not None and Path(name).is_file():
        template = Path(name).read_text(encoding="utf-8")
    elif name is not None:
        ending = "_training_chat_template"
        templates = {
            key.removesuffix(ending): value
            for key, value in vars(known).items()
            if key.endswith(ending) and isinstance(value, str)
        }
        template = templates.get(ALIASES.get(name, name))
        if template is None:
            names = ", ".join(sorted(templates))
            raise ValueError(f"template: expected a file or one of {names}, got {name!r}")
    elif tokenizer.chat_template is None:
        return None
    else:
        try:
            template = known.get_training_chat_template(tokenizer) or tokenizer.chat_template
        except ValueError:
            template = str(tokenizer.chat_template)
    if "generation %}" not in template and "generation -%}" not in template:
        raise ValueError(
            "template: expected {% generation %} marks around answers, got a chat template without"
        )
    return template
