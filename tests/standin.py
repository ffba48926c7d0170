"""A stand-in for the embedded model: tiny and random, with a byte-level tokenizer of its own."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import ahn
from ahn.checkpoint.named_models import NamedModel
from ahn.embedded.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer
from tiny_models import base_model, wake

VOCABULARY, CONTEXT, WINDOW, SINKS = 300, 192, 16, 4
BUDGET = WINDOW + SINKS
SLOTS = 8
PARAGRAPH = "def first(values):\n    return [value for value in values if value][:1]\n"
TEXTS = {  # held-out documents of the stand-in, each beyond its context
    "alpha": PARAGRAPH * 12,
    "beta": "Grüße aus Zürich, 漢字 und 🦉.\n" * 30,
}
TRAINING = [("other.py", "class Other:\n    pass\n" * 400), ("more.py", "x = [1, 2, 3]\n" * 600)]


@cache
def backend() -> Tokenizer:
    return train_tokenizer([PARAGRAPH * 20, "Grüße, 漢字 🦉"], VOCABULARY)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )


def base():
    """The plain base model, with the same weights every time."""
    return base_model(
        "Qwen3",
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def load(memory=None, *, window=None, num_sinks=None):
    """As `ahn.embedded.load`; a memory is named by its cell, by `Slots`, or by both."""
    model = base()
    if memory is not None:
        cell, slots = memory.removesuffix("Slots").rstrip("-") or None, memory.endswith("Slots")
        config = ahn.AHNConfig(
            memory=cell,
            window=window or WINDOW,
            num_sinks=num_sinks or SINKS,
            slots=SLOTS if slots else 0,
        )
        wake(ahn.attach(model, config))
    return model, tokenizer()


def save_base(folder) -> None:
    """A folder that transformers reads: model and tokenizer."""
    base().save_pretrained(folder)
    save_tokenizer(backend(), folder, CONTEXT)


def install_as(monkeypatch, folder, name, cells) -> None:
    """Make the stand-in a named model of an installed package, with memories of these cells."""
    package = folder / f"{name}_package"
    save_base(package / "base")
    for cell in cells:
        ahn.save_pretrained(load(cell)[0], package / "memories" / cell)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    model = NamedModel(
        base=f"{name}_package/base",
        memories=f"{name}_package/memories",
        default_memory=cells[0],
        dtype="float32",
    )
    monkeypatch.setitem(ahn.checkpoint.NAMED_MODELS, name, model)


def use(monkeypatch) -> None:
    """Put the stand-in and its texts in the place of the embedded model and the library."""
    monkeypatch.setattr("ahn.embedded.load", load)
    monkeypatch.setattr("ahn.embedded.corpus.held_out_documents", lambda: list(TEXTS.items()))
    monkeypatch.setattr("ahn.embedded.corpus.training_documents", lambda: list(TRAINING))
    monkeypatch.setattr("ahn.demo.run.TRAINING_LENGTH", 64)
