"""The embedded model's tokenizer: byte-level BPE that splits text as Python source is written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"

# BPE tokens stay within these matches. Names are split at underscores and capitals and a dot is
# separate, so a name has the same tokens everywhere; a line end is joined to the indentation after
# it; digits are single tokens.
_PRE_TOKENS = "|".join(
    (
        r"[ _]?(?:\p{Lu}?\p{Ll}+|\p{Lu}+(?!\p{Ll})|\p{L})",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+",
        r"\n+[ \t]*",
        r"\s+",
    )
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A lossless byte-level BPE of exactly `vocab_size` tokens, `<|endoftext|>` being token 0.

    Raises:
        ValueError: `vocab_size` is not above the 257 tokens of all bytes and `<|endoftext|>`, or
            the texts are too short to learn that many.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet) + 1:
        raise ValueError(f"vocab_size: expected more than {len(alphabet) + 1}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = tokenizer.get_vocab_size()
    if learned != vocab_size:
        raise ValueError(f"texts: expected enough to learn {vocab_size} tokens, got {learned}")
    return tokenizer


def check_lossless(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Raise ValueError unless every text comes back from its tokens unchanged."""
    for index, text in enumerate(texts):
        ids = tokenizer.encode(text).ids
        if tokenizer.decode(ids, skip_special_tokens=False) != text:
            raise ValueError(f"text {index}: expected the text back from its tokens, got another")


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write a folder that `AutoTokenizer.from_pretrained` reads; `context` is its length limit."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    _compact(folder / "tokenizer.json")


def _compact(path: Path) -> None:
    """Drop the indentation, half of the file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
