"""Data: every format gives the same tokens, answers alone are labelled, bad data says so."""

from __future__ import annotations

import pytest
import torch
from data_files import (
    ALPACA,
    ANSWER,
    CHATQA,
    CHATQA_LONG,
    QUESTION,
    SHAREGPT,
    TALK,
    rows_of,
    written,
)

from ahn.training.data import Collator
from ahn.training.losses import IGNORE

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"conversations": SHAREGPT},
        ALPACA,
        {"prompt": TALK[:1], "completion": TALK[1:]},
        CHATQA,
        CHATQA_LONG,
    ],
    ids=["messages", "conversations", "alpaca", "prompt", "chatqa", "chatqa_long"],
)
def test_formats(tmp_path, tokenizer, name, row):
    (got,) = rows_of(written(tmp_path, [row], name), tokenizer)
    answer = [x for x in got["labels"] if x != IGNORE]
    assert tokenizer.decode(answer).strip().startswith(ANSWER.strip())
    assert QUESTION in tokenizer.decode(got["input_ids"])
    assert QUESTION not in tokenizer.decode(answer)
    assert all(b in (IGNORE, a) for a, b in zip(got["input_ids"], got["labels"]))


def test_what_chatqa2_wraps_its_questions_in_is_left_out(tmp_path, tokenizer):
    """Columns of nvidia/ChatQA2-Long-SFT-data: `long_sft` has the document in the question."""
    rows = rows_of(
        f"{written(tmp_path, [CHATQA], 'a.json')},{written(tmp_path, [CHATQA_LONG], 'b.json')}",
        tokenizer,
    )
    texts = [tokenizer.decode(row["input_ids"]) for row in rows]
    assert f"user\nA ring keeps.\n\n{QUESTION}<" in texts[0]
    assert f"user\nA ring.\n\n{QUESTION}<" in texts[1]
    assert not any("Another" in text or "Assistant:" in text for text in texts)


def test_plain_text_is_split_and_nothing_is_lost(tmp_path, tokenizer):
    text = "def f(x):\n    return x + 1\n" * 60
    rows = rows_of(written(tmp_path, text, "a.txt"), tokenizer, cutoff_len=100)
    ids = [i for row in rows for i in row["input_ids"]]
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert ids == whole[: len(ids)]
    assert len(whole) - len(ids) <= 8
    assert all(row["labels"] == row["input_ids"] for row in rows)


def test_completion_alone_is_labelled(tmp_path, tokenizer):
    (row,) = rows_of(written(tmp_path, [{"prompt": "x = ", "completion": "12345 " * 9}]), tokenizer)
    known = len(tokenizer("x = ")["input_ids"])
    assert row["labels"][known - 1 : known + 1] != [IGNORE, IGNORE]
    assert row["labels"][0] == IGNORE
    assert row["labels"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("streaming", [False, True])
def test_packing_and_streaming(tmp_path, tokenizer, streaming):
    texts = [{"text": f"value_{i} = {i}\n" * (5 + i)} for i in range(12)]
    path = written(tmp_path, texts)
    apart = rows_of(path, tokenizer, streaming=streaming)
    packed = rows_of(path, tokenizer, streaming=streaming, packing=True)
    assert len(packed) < len(apart)
    documents = []
    for row in packed:
        assert len(row["input_ids"]) == sum(row["seq_lengths"]) <= 512
        batch = Collator()([row])
        starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
        for first, length in zip(starts, row["seq_lengths"]):
            documents.append(row["input_ids"][first : first + length])
    assert sorted(documents) == sorted(row["input_ids"] for row in apart)


def test_shares_of_several_sets(tmp_path, tokenizer):
    paths = [
        written(tmp_path, [{"text": word * 30}] * 40, f"{word}.jsonl")
        for word in ("alpha ", "beta ")
    ]
    names = ",".join(paths)
    assert len(rows_of(names, tokenizer)) == 80
    rows = rows_of(names, tokenizer, interleave_probs="3,1")
    share = sum("alpha" in tokenizer.decode(row["input_ids"]) for row in rows) / len(rows)
    assert 0.6 < share < 0.9
    assert rows == rows_of(names, tokenizer, interleave_probs="3,1")
    assert len(rows_of(names, tokenizer, max_samples=3)) == 6


def test_workers_change_nothing(tmp_path, tokenizer):
    path = written(tmp_path, [{"text": f"{i} " * 30} for i in range(10)])
    assert rows_of(path, tokenizer, preprocessing_num_workers=2) == rows_of(path, tokenizer)


def test_batches():
    rows = [{"input_ids": [1, 2, 3], "labels": [IGNORE, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    batch = Collator(9)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[IGNORE, 2, 3], [4, IGNORE, IGNORE]]
    assert "position_ids" not in batch
    rows = [{**row, "seq_lengths": n} for row, n in zip(rows, ([1, 2], [1]))]
    assert torch.equal(Collator()(rows)["position_ids"], torch.tensor([[0, 0, 1], [0, 0, 1]]))


@pytest.mark.parametrize(
    ("content", "name", "options", "said"),
    [
        ("", "a.jsonl", {}, "a.jsonl: expected samples"),
        ("{broken", "a.jsonl", {}, "a.jsonl: expected samples"),
        ([{"text": "short"}], "a.jsonl", {}, "expected a document of at least 9 tokens, got 1"),
        ([{"other": "x" * 99}], "a.jsonl", {}, "expected a column text"),
        ([{"messages": TALK[:1] * 3}], "a.jsonl", {}, "expected labelled tokens, got 1 documents"),
        ([{"question": "What?", "answer": []}], "a.jsonl", {}, "expected a question and an answer"),
        ([{"messages": [{"role": "user"}]}], "a.jsonl", {}, "expected messages with role and con"),
        ([{"messages": TALK}], "a.jsonl", {"template": "nonsense"}, "template: expected a file or"),
        ([{"messages": TALK}], "a.jsonl", {"template": None}, "expected --template for"),
        ([{"text": "x " * 99}], "a.jsonl", {"interleave_probs": "1,1"}, "probs: expected 1"),
        ("x", "a.csv", {}, "expected samples, got: files of one kind"),
    ],
)  # fmt: skip
def test_bad_data(tmp_path, tokenizer, content, name, options, said):
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        written(tmp_path, content, name)
    with pytest.raises(ValueError) as caught:
        rows_of(str(tmp_path / name), tokenizer, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
