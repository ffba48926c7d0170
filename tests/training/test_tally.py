"""What is dropped or shortened is counted, always: streams, workers, caches, and in the result."""

from __future__ import annotations

import json
import logging

import pytest
from data_files import written
from runs import prepared, train
from torch.utils.data import DataLoader

from ahn.training.data import DataArguments, prepare
from ahn.training.data.tally import counts

pytestmark = pytest.mark.usefixtures("own_cache")
TALK = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER " * 20}]
LONG = [{"role": "user", "content": "QUESTION " * 300}, TALK[1]]
ROWS = (
    [{"messages": TALK}] * 5
    + [{"messages": LONG}] * 4
    + [{"messages": TALK[:1] * 9}] * 3
    + [{"messages": [{**m, "content": "x"} for m in TALK]}] * 2
    + [{"messages": []}, {"messages": None}]
)
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
EXPECTED = {"samples": 16, "documents": 9, "short": 2, "unlabelled": 3, "empty": 2, "shortened": 4}


def counted(tmp_path, tokenizer, rows=ROWS, **options):
    """The data set, and the counts of each source as they are now."""
    tallies = []
    template = tmp_path / "plain.jinja"
    template.write_text(TEMPLATE)
    options = {"filter_len": 40, "cutoff_len": 200, "template": str(template), **options}
    path = written(tmp_path, rows, "a.jsonl")
    dataset = prepare(path, DataArguments(**options), tokenizer, on_tally=tallies.append)
    return dataset, lambda: [counts(tally).to_dict() for tally in tallies]


def of_interest(tally):
    return {name: tally[name] for name in EXPECTED}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [None, 2])
def test_every_sample_is_kept_or_counted_as_dropped(tmp_path, tokenizer, processes):
    for _ in range(2):  # the second time from the cache
        options = {"preprocessing_num_workers": processes}
        dataset, tallies = counted(tmp_path, tokenizer, **options)
        (tally,) = tallies()
        assert of_interest(tally) == EXPECTED and tally["name"].endswith("a.jsonl")
        assert len(dataset) == 9 and dataset.column_names == ["input_ids", "labels"]
        whole = len(tokenizer("QUESTION " * 300)["input_ids"])
        assert 4 * (whole - 200) < tally["tokens_cut"] < 4 * whole


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_counted_while_it_is_read(tmp_path, tokenizer, workers):
    dataset, tallies = counted(tmp_path, tokenizer, streaming=True)
    assert of_interest(tallies()[0]) == dict.fromkeys(EXPECTED, 0)
    rows = list(DataLoader(dataset, batch_size=None, num_workers=workers))
    assert len(rows) == 9 and of_interest(tallies()[0]) == EXPECTED


def test_a_long_text_is_split_and_its_end_counted(tmp_path, tokenizer):
    rows = [{"text": "word " * 130}, {"text": ""}, {"text": None}]
    _, tallies = counted(tmp_path, tokenizer, rows, cutoff_len=50)
    tally = tallies()[0]
    documents = tally["documents"] + tally["short"]
    assert documents == -(-(len(tokenizer("word " * 130)["input_ids"]) + 1) // 50)
    assert (tally["samples"], tally["empty"], tally["shortened"]) == (3, 2, 0)


@pytest.mark.slow
def test_what_is_dropped_is_said_and_written_with_the_result(tmp_path, caplog):
    prepared(tmp_path)
    rows = (tmp_path / "data.jsonl").read_text() + '{"text": "short"}\n{"text": null}\n'
    (tmp_path / "data.jsonl").write_text(rows)
    with caplog.at_level(logging.INFO, "ahn"):
        train(tmp_path, "out", max_steps=1)
    said = [r.getMessage() for r in caplog.records if "data.jsonl" in r.getMessage()]
    assert len(said) == 1 and "32 samples, " in said[0]
    assert "dropped as too short" in said[0] and "1 dropped as empty" in said[0]
    (tally,) = json.loads((tmp_path / "out" / "training.json").read_text())["data"]
    assert tally["samples"] == 32 and tally["empty"] == 1
    assert f"{tally['short']} dropped as too short" in said[0]


@pytest.mark.slow
def test_a_streamed_run_says_what_it_read(tmp_path, caplog):
    prepared(tmp_path)
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write('{"text": "short"}\n')
    with caplog.at_level(logging.INFO, "ahn"):
        train(tmp_path, "out", streaming=True, max_steps=40)
    said = [r.getMessage() for r in caplog.records if "data.jsonl" in r.getMessage()]
    assert len(said) == 1 and "dropped as too short" in said[0]
    (tally,) = json.loads((tmp_path / "out" / "training.json").read_text())["data"]
    assert tally["short"] >= 1 and tally["documents"] > 0
