"""Data: every format gives the same tokens, answers alone are labelled, bad data says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from ahn.embedded import BASE
from ahn.training.data import Collator, DataArguments, prepare
from ahn.training.data.sources import find_sources
from ahn.training.data.tokens import Encoder
from ahn.training.losses import IGNORE

QUESTION, ANSWER = "What does a ring keep?", "The last tokens, " * 20
TALK = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SHAREGPT = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
OWN = [{"who": "u", "what": QUESTION}, {"who": "a", "what": ANSWER}]
ALPACA = {"instruction": QUESTION, "input": "", "output": ANSWER}
CHATQA = {"question": QUESTION, "answer": [ANSWER, "Another."], "sub-paragraphs": "A ring keeps."}
CHATQA_LONG = {"question": f"User: A ring.\n\n{QUESTION}\n\nAssistant:", "answer": ANSWER}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def written(folder, rows, name="data.jsonl"):
    path = folder / name
    if name.endswith(".parquet"):
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return str(path)


def rows_of(names, tokenizer, **options):
    options = {"filter_len": 8, "cutoff_len": 512, "template": "qwen2_5", **options}
    return list(prepare(names, DataArguments(**options), tokenizer))


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


def test_the_registry_that_ships_with_the_recipes():
    """Names, subsets and shares as in the data set's card."""
    recipes = Path(__file__).parents[2] / "recipes"
    found = find_sources("chatqa2_long_sft,chatqa2_narrativeqa", str(recipes))
    assert {source.path for source in found} == {"nvidia/ChatQA2-Long-SFT-data"}
    assert [x.options["name"] for x in found] == ["long_sft", "NarrativeQA_131072"]
    assert {source.formatting for source in found} == {"chatqa"}


def test_the_registry_of_llama_factory(tmp_path, tokenizer):
    written(tmp_path, [{"talk": OWN, "sys": "Be short."}], "talk.json")
    written(tmp_path, [{"q": QUESTION, "a": ANSWER, "h": [["One?", "Two."]]}] * 3, "pairs.json")
    entries = {
        "talk": {
            "file_name": "talk.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "system": "sys"},
            "tags": {
                "role_tag": "who",
                "content_tag": "what",
                "user_tag": "u",
                "assistant_tag": "a",
            },
        },
        "pairs": {
            "file_name": "pairs.json",
            "columns": {"prompt": "q", "response": "a", "history": "h"},
            "num_samples": 2,
        },
    }
    written(tmp_path, entries, "dataset_info.json")
    talk, *pairs = rows_of("talk, pairs", tokenizer, dataset_dir=str(tmp_path))
    assert "system\nBe short." in tokenizer.decode(talk["input_ids"])
    assert len(pairs) == 2
    answers = tokenizer.decode([x for x in pairs[0]["labels"] if x != IGNORE])
    assert answers.strip().startswith("Two.")


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


def test_a_wrong_registry(tmp_path, tokenizer):
    for entry, said in [
        ({"file_name": "x", "formatting": "other"}, "expected a formatting of alpaca, share"),
        ({"files": "x"}, "expected keys among"),
        ({"split": "x"}, "expected one of"),
    ]:
        written(tmp_path, {"a": entry}, "dataset_info.json")
        with pytest.raises(ValueError, match=said):
            rows_of("a", tokenizer, dataset_dir=str(tmp_path))
    with pytest.raises(ValueError, match="expected a path or one of"):
        rows_of("b", tokenizer, dataset_dir=str(tmp_path))
    with pytest.raises(ValueError, match="cutoff_len: expected more than filter_len"):
        DataArguments(cutoff_len=100, filter_len=100)


CARD = """---
configs:
- config_name: short
  data_files: [{split: train, path: short/train.jsonl}, {split: test, path: short/test.jsonl}]
- config_name: long
  data_files: [{split: train, path: long/*.jsonl}]
---
"""


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_laid_out_as_on_the_hub(tmp_path, tokenizer, streaming):
    """Its card names configurations and splits, as those that `datasets` reads from the hub."""
    folder = tmp_path / "set"
    for name in ("short/train", "short/test", "long/a", "long/b"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        written(folder, [{"instruction": f"{name}?", "output": ANSWER}], f"{name}.jsonl")
    (folder / "README.md").write_text(CARD)
    entries = {
        "one": {"hf_hub_url": str(folder), "subset": "short", "split": "test"},
        "two": {"hf_hub_url": str(folder), "subset": "long"},
    }
    written(tmp_path, entries, "dataset_info.json")
    rows = rows_of("one,two", tokenizer, dataset_dir=str(tmp_path), streaming=streaming)
    texts = [tokenizer.decode(row["input_ids"]) for row in rows]
    found = [next(x for x in ("short/test", "long/a", "long/b") if x in text) for text in texts]
    assert found == ["short/test", "long/a", "long/b"]


def test_a_name_on_the_hub(tmp_path, tokenizer, monkeypatch):
    """What `datasets` is asked for; the samples are its own."""
    import datasets

    asked, rows = [], datasets.Dataset.from_list([ALPACA, ALPACA])

    def load_dataset(*args, **options):
        asked.append((args, options))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    entry = {"hf_hub_url": "a/b", "subset": "c", "split": "d", "folder": "e", "num_samples": 1}
    written(tmp_path, {"x": entry}, "dataset_info.json")
    got = rows_of("x,who/what", tokenizer, dataset_dir=str(tmp_path))
    assert len(got) == 3 and got[0] == got[1]
    assert asked == [
        (("a/b",), {"name": "c", "split": "d", "data_dir": "e", "streaming": False}),
        (("who/what",), {"split": "train", "streaming": False}),
    ]


def test_what_is_tokenised_is_cached(tmp_path, tokenizer, monkeypatch):
    """By a process that loads the tokenizer anew, and has used it."""
    path = written(tmp_path, [{"text": f"{i} " * 30} for i in range(10)])
    first = rows_of(path, tokenizer)
    monkeypatch.setattr(Encoder, "documents", None)
    again = AutoTokenizer.from_pretrained(BASE)
    again("some text", truncation=True, max_length=3)
    assert rows_of(path, again) == first
    with pytest.raises(TypeError):
        rows_of(path, again, cutoff_len=50)


def test_empty_files_among_others_do_no_harm(tmp_path, tokenizer):
    for name in ("a.jsonl", "c.jsonl"):
        (tmp_path / name).touch()
    written(tmp_path, [{"text": "x " * 99}], "b.jsonl")
    assert len(rows_of(str(tmp_path), tokenizer)) == 1
    with pytest.raises(ValueError, match=r"a.jsonl: expected samples, got: no samples"):
        rows_of(str(tmp_path / "a.jsonl"), tokenizer)
