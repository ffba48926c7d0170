"""Samples of any content: refused by the data set's name in one line, or whole and labelled."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

import standin
from ahn.training.data.sources import Source
from ahn.training.data.tokens import Encoder, training_template
from ahn.training.losses import IGNORE
from fuzz_cases import cases, json_values, outcome, replaced

WORDS = ("<|im_end|>", "<|im_start|>", "{{ x }}", "</think>", "\n", "user", "assistant", "system",
         "tool", "gpt", "human", "function_call", "observation", '{"name": "f"}')  # fmt: skip
KEYS = ("role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "tools",
        "system", "text", "prompt", "completion", "reasoning_content", "history")  # fmt: skip
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TEXT = st.sampled_from(WORDS) | st.text(min_size=1, max_size=20)


@cache
def encoder(limit=4096, template="qwen"):
    tokenizer = standin.tokenizer()
    return Encoder(tokenizer, Source("set", "set"), training_template(tokenizer, template), limit)


def decoded(ids):
    return standin.tokenizer().decode([x for x in ids if x != IGNORE])


def forms_of(talk, system):
    """The same conversation in each format."""
    chat = [m for q, a in talk for m in (("user", q), ("assistant", a))]
    names = {"user": "human", "assistant": "gpt"}
    (*history, (question, answer)) = talk
    forms = [
        {"messages": [{"role": role, "content": text} for role, text in chat]},
        {"conversations": [{"from": names[role], "value": text} for role, text in chat]},
        {"instruction": question, "output": answer, "history": [list(x) for x in history]},
    ]
    forms = [{**form, "system": system} for form in forms] if system else forms
    start = [{"role": "system", "content": system}] if system else []
    return [*forms, {"messages": [*start, *forms[0]["messages"]]}]


@given(
    talk=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    system=st.none() | TEXT,
    limit=st.sampled_from([16, 64, 4096]),
)
@cases("a conversation")
def test_a_conversation_is_the_same_in_every_format_and_whole(talk, system, limit):
    forms = [encoder(limit).documents(row) for row in forms_of(talk, system)]
    assert all(form == forms[0] for form in forms)
    ((ids, labels),) = forms[0]
    assert len(ids) == len(labels) <= limit
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels))
    if len(ids) < limit:
        text, learnt = decoded(ids), decoded(labels)
        for question, answer in talk:
            assert question in text and answer in learnt
            text = text[text.index(question) + len(question) :]
            learnt = learnt[learnt.index(answer) + len(answer) :]


def known_rows():
    """A row of each known format."""
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    called = {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "T"}
    share = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
    return [
        {"text": "some text"},
        {"messages": chat, "system": "S"},
        {"messages": [chat[0], called, {"role": "tool", "content": "R"}, chat[1]],
         "tools": [{"name": "f", "parameters": {}}]},
        {"conversations": [*share, share[0], call], "tools": '[{"name": "f"}]'},
        {"instruction": "Q", "input": "I", "output": "A", "history": [["q", "a"]], "system": "S"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": chat[:1], "completion": chat[1:]},
        {"question": "Q", "answer": ["A", "B"], "sub-paragraphs": "D"},
    ]  # fmt: skip


@given(
    row=st.sampled_from(known_rows()).flatmap(lambda row: replaced(row, json_values(KEYS, WORDS))),
    template=st.sampled_from(["qwen", "qwen3", "llama3", "mistral", "llama2"]),
)
@cases("a row")
def test_a_row_of_any_content_is_refused_or_well_formed(row, template):
    row = row if isinstance(row, dict) else {"text": row}
    documents, why = outcome(encoder(64, template).documents, row)
    assert not why or (why.startswith("set: ") and "\n" not in why), why
    for ids, labels in documents or ():
        assert len(ids) == len(labels) <= 64
        assert all(0 <= token < standin.VOCABULARY + 64 for token in ids)
        assert all(label in (IGNORE, token) for token, label in zip(ids, labels))
