"""Where data come from: registries, the hub, folders laid out as there, the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import (
    ALPACA,
    ANSWER,
    OWN,
    QUESTION,
    rows_of,
    written,
)
from transformers import AutoTokenizer

from ahn.embedded import BASE
from ahn.training.data import DataArguments
from ahn.training.data.sources import find_sources
from ahn.training.data.tokens import Encoder
from ahn.training.losses import IGNORE

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_a_wrong_registry(tmp_path, tokenizer):
    for entry, said in [
        ({"file_name": "x", "formatting": "other"}, "expected a formatting of alpaca, share"),
        ({"files": "x"}, "expected keys among"),
        ({"file_name": "x", "ranking": True}, "expected keys among .*, got .'ranking'"),
        ({"file_name": "x", "columns": {"images": "i"}}, "expected columns among .*'images'"),
        ({"file_name": "x", "tags": {"tool_tag": "i"}}, "expected tags among .*'tool_tag'"),
        ({"ms_hub_url": "x"}, "expected one of .*, got .'ms_hub_url'"),
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
    entry = {
        "hf_hub_url": "a/b",
        "ms_hub_url": "a/b",
        "subset": "c",
        "split": "d",
        "folder": "e",
        "num_samples": 1,
    }
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
    monkeypatch.setattr(Encoder, "encoded", None)
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


def test_what_a_reader_says_in_many_lines_is_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "words"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": 5, "more": 1}\n')
    with pytest.raises(ValueError, match=r"expected samples, got: Couldn't cast .*match$") as error:
        find_sources(str(tmp_path), ".")[0].load(streaming=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_byte_order_mark_is_no_text(tmp_path, tokenizer, name):
    text = "value = 1\n" * 20
    content = {"a.txt": text, "a.jsonl": json.dumps({"text": text}) + "\n",
               "a.json": json.dumps([{"text": text}])}[name]  # fmt: skip
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    (row,) = rows_of(str(tmp_path / name), tokenizer)
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == text


def test_other_separators_than_line_feeds_are_text(tmp_path, tokenizer):
    text = "a\u2028b\x85c " * 20
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    (row,) = rows_of(str(tmp_path / "a.jsonl"), tokenizer)
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == text


def test_a_text_gets_one_end_token(tmp_path, tokenizer):
    from tokenizers import processors

    adds_an_end = AutoTokenizer.from_pretrained(BASE)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    adds_an_end.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    for row in ({"text": "word " * 20}, {"prompt": "word ", "completion": "word " * 20}):
        for each in (tokenizer, adds_an_end):
            (got,) = rows_of(written(tmp_path, [row], "a.jsonl"), each)
            assert got["input_ids"].count(end[1]) == 1 and got["input_ids"][-1] == end[1]
