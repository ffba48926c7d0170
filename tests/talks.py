"""What sessions are tested with: a stand-in that has a chat template, a text, questions."""

from __future__ import annotations

import copy

import ahn
import standin
from ahn.session import Session

# As ChatML, with the one special token that the stand-in has.
TEMPLATE = (
    "{% for m in messages %}<|endoftext|>{{ m.role }}\n{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|endoftext|>assistant\n{% endif %}"
)
TEXT = "The ring keeps what the window forgets, and the cell the rest. " * 12
QUESTION = "What does the ring keep?"
WINDOW, CHUNK = 64, 100


def chatting(tokenizer=None, template=TEMPLATE):
    """A tokenizer with a chat template."""
    tokenizer = copy.deepcopy(tokenizer or standin.tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def new_model(memory="GatedDeltaNet-Slots", **options):
    return standin.load(memory, **{"window": WINDOW, **options})[0]


def saved(folder):
    """Saves a base with a chat template and a memory there; the options that name them."""
    standin.save_base(folder)
    chatting().save_pretrained(folder)
    ahn.save_pretrained(new_model(), folder / "memory")
    return ("--model", folder, "--memory", folder / "memory")


def new_session(model, tokenizer, **options):
    """A session that has read nothing."""
    return Session(model, tokenizer, **{"prefill_chunk_size": CHUNK, **options})


def said(session, question=QUESTION, **options):
    """The answer, of a few tokens."""
    return "".join(session.ask(question, **{"max_new_tokens": 12, **options}))
