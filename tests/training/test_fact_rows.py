"""Rows of plain text that ask for facts: what is asked was said, answers are labelled."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from ahn.embedded import BASE
from ahn.training.data.fact_rows import FactRows, Passage
from ahn.training.losses import IGNORE

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
WORDS = ["river", "stone", "lamp", "garden", "clock", "bread", "horse", "ship", "cloud", "table"]
TEXT = "".join(
    f"The {a}{b} of {c} stood near {b}{c} in {1700 + 7 * i} with Old{a}\nSize{i}: {i * 31} {a}\n"
    for i, (a, b, c) in enumerate((a, b, c) for a in WORDS for b in WORDS for c in WORDS[:3])
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def chatty():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_share_of_nothing_gives_the_text_back(tokenizer):
    rows = list(FactRows(tokenizer, 500, 0.0).rows(TEXT))
    assert all(ids == labels and 0 < len(ids) <= 500 for ids, labels in rows)
    assert "".join(tokenizer.decode(ids) for ids, _ in rows) == TEXT


def test_rows_ask_at_most_of_their_length_and_repeat_themselves(tokenizer):
    maker = FactRows(tokenizer, 600, 1.0, ("en", "code"))
    rows = list(maker.rows(TEXT))
    assert rows == list(maker.rows(TEXT)) != list(FactRows(tokenizer, 600, 1.0, seed=1).rows(TEXT))
    plain = list(FactRows(tokenizer, 600, 0.0).rows(TEXT))
    assert len(rows) == len(plain)
    assert all(len(ids) <= 600 for ids, _ in rows)
    assert all(row != other for row, other in zip(rows[:-1], plain))


@pytest.mark.parametrize("length", [700, 2000])
def test_rows_are_text_for_the_most_part(chatty, length):
    rows = list(FactRows(chatty, length, 1.0).rows(TEXT))[:-1]
    sizes = [len(ids) / length for ids, _ in rows]
    assert min(sizes) > 0.4 and sum(sizes) / len(sizes) > 0.6


def test_a_chat_labels_its_values_and_the_token_before_and_each_was_said(chatty):
    rows = list(FactRows(chatty, 700, 1.0, ("en",)).rows(TEXT))
    chats = [(ids, labels) for ids, labels in rows if IGNORE in labels]
    assert 0.2 < len(chats) / len(rows) < 0.8
    for ids, labels in chats:
        text = chatty.decode(ids)
        assert text.endswith("</assistant>\n") and "<user>" in text
        values, run = [], []
        for token in [*labels, IGNORE]:
            if token != IGNORE:
                run.append(token)
            elif run:
                values.append(chatty.decode(run[1:]).strip())
                run = []
        assert 1 <= len(values) <= 4
        story = text[: text.index("</user>")]
        assert all(value in story for value in values)
        assert [x for x in labels if x != IGNORE] and all(
            a == b for a, b in zip(ids, labels) if b != IGNORE
        )


def test_found_facts_are_asked_for_too(tokenizer):
    rows = FactRows(tokenizer, 900, 1.0, ("en",)).rows(TEXT)
    text = "".join(tokenizer.decode(ids) for ids, _ in rows)
    keys = [f"\nSize{i}: {i * 31}" for i in range(300)]
    assert any(text.count(key) > 1 for key in keys)


def test_a_text_of_a_few_words_stays_plain(tokenizer):
    [(ids, labels)] = FactRows(tokenizer, 100, 1.0).rows("one two three\n" * 3)
    assert tokenizer.decode(ids) == "one two three\n" * 3 and ids == labels


def test_a_part_of_a_passage_is_that_of_its_text(tokenizer):
    whole = Passage.of(tokenizer, TEXT)
    part = whole.part(10, 40)
    assert part.ids == whole.ids[10:40] and tokenizer.decode(part.ids) == part.text
    assert all(part.text[part.starts[i]] == "\n" for i in part.line_ends)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "facts: expected a share between 0 and 1, got 1.5"),
        ({"languages": ("xx",)}, "language: expected one of"),
    ],
)
def test_what_cannot_be_is_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        FactRows(tokenizer, **{"length": 100, "share": 0.5, **options})


def test_a_template_that_drops_messages_is_refused(chatty):
    dropping = AutoTokenizer.from_pretrained(BASE)
    dropping.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match="expected a chat template that keeps every message once"):
        list(FactRows(dropping, 400, 1.0, ("en",)).rows(TEXT))
