"""LongBench, InfiniteBench, RULER and LV-Eval run offline, on files in their own formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lm_eval.tasks.ruler.cwe_utils import WORDS

import ahn
from ahn.embedded.tokenizer import save_tokenizer, train_tokenizer
from ahn.evaluation.lm import AHNLM
from ahn.evaluation.report import write_report
from ahn.evaluation.tasks.longbench import task as longbench
from ahn.evaluation.tasks.lveval import task as lveval
from ahn.evaluation.tasks.ruler import task as ruler
from commands import call
from tiny_models import base_model, wake

VOCABULARY = 3000
LONGBENCH = {
    "input": "Which name?", "context": "def alpha(): pass\n" * 9, "answers": ["alpha", "Alpha x"],
    "length": 9, "dataset": "hotpotqa", "language": "en", "all_classes": None, "_id": "0",
}  # fmt: skip
INFINITEBENCH = {
    "id": 0, "context": "def beta(): pass\n" * 9, "input": "Which name?", "answer": ["beta"],
    "options": [],
}  # fmt: skip
LVEVAL = {
    "input": "谁", "context": "北京大学。" * 9, "answers": ["北京"], "length": 9,
    "dataset": "cmrc_mixup", "language": "zh", "answer_keywords": "北京", "confusing_facts": [],
}  # fmt: skip
ANSWERS = {  # of data sets whose answers have a form
    "passage_retrieval_en": "Paragraph 3", "passage_retrieval_zh": "段落3", "passage_count": "3",
    "trec": "Location", "lsht": "Location",
}  # fmt: skip
PARAGRAPH = "The fox ran home. It slept well. Then it woke and ate all of the bread. "
SQUAD = {"data": [{"paragraphs": [
    {"context": f"Town {i} has a fox. {PARAGRAPH}", "qas": [
        {"question": f"What has town {i}?", "answers": [{"text": "a fox"}], "is_impossible": False}
    ]} for i in range(30)
]}]}  # fmt: skip
HOTPOTQA = [
    {"question": f"Who ran in {i}?", "answer": "the fox", "context": [[f"Town {i}", [PARAGRAPH]]]}
    for i in range(30)
]
SENTENCES = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
    "Below is a numbered list of words. In these words, some appear more often than others.",
    "VAR ABCDE = 12345 VAR FGHIJ = VAR ABCDE",
)
PUNKT = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")


def reads_english(path):
    """A base and a memory whose tokenizer knows RULER's words: its lengths are in tokens."""
    text = [" ".join(WORDS), *(sentence * 20 for sentence in SENTENCES), PARAGRAPH * 9]
    backend = train_tokenizer(text, VOCABULARY)
    model = base_model(
        "Qwen3", vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    model.save_pretrained(path)
    save_tokenizer(backend, path, 8192)
    config = ahn.AHNConfig(memory="DeltaNet", window=16, num_sinks=4)
    ahn.save_pretrained(wake(ahn.attach(model, config)), path / "DeltaNet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and small files of every benchmark in its own format."""
    path = tmp_path_factory.mktemp("model")
    reads_english(path)
    data = path / "data"
    punkt = data / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
    punkt.mkdir(parents=True)
    for name in PUNKT:
        (punkt / name).touch()
    for name in longbench.METRICS:
        classes = ["Location", "Number"] if name in ("trec", "lsht") else None
        answers = [ANSWERS.get(name, "alpha")]
        document = LONGBENCH | {"answers": answers, "all_classes": classes, "dataset": name}
        write(data / f"{name}.jsonl", *(document | {"_id": str(i)} for i in range(3)))
    write(data / "longbook_qa_eng.jsonl", INFINITEBENCH)
    for file in Path(lveval.__file__).parent.glob("*.yaml"):
        for level in ("16k", "32k"):
            write(data / f"{file.stem}_{level}.jsonl", LVEVAL, LVEVAL, LVEVAL)
    (data / ruler.ESSAYS).write_text(json.dumps({"text": PARAGRAPH * 300}))
    (data / "squad.json").write_text(json.dumps(SQUAD))
    (data / "hotpotqa.json").write_text(json.dumps(HOTPOTQA))
    return path


def write(file, *documents):
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))


def evaluated(folder, output, *arguments):
    base = ["--model", folder, "--memory", folder / "DeltaNet", "--methods", "ahn", "--device",
            "cpu", "--output", output]  # fmt: skip
    return call("eval", *arguments, *base)


def done(found, output):
    assert found.exit_code == 0, (found.stderr, found.exception)
    return json.loads((output / "ahn-DeltaNet" / "results.json").read_text())["tasks"]


def records(output, task):
    lines = (output / "ahn-DeltaNet" / "samples" / f"{task}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def offline(monkeypatch):
    """Whoever opens a connection is told that there is none."""

    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


GROUPS = {  # data sets, samples of each, the metrics each has
    "longbench-6": (6, 2, {"score"}),
    "longbench": (21, 2, {"score"}),
    "infinitebench-qa": (1, 1, {"score"}),
    "lveval": (11, 4, {"score", "16k", "32k"}),
    "ruler": (13, 2, {"4096"}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", GROUPS)
def test_every_group_runs_offline_on_files_of_its_own(folder, tmp_path, offline, group):
    count, samples, metrics = GROUPS[group]
    lengths = {"lveval": ["--lengths", "16384,32768"], "ruler": ["--lengths", "4096"]}
    more = [*lengths.get(group, []), "--data", folder / "data", "--samples", 2]
    tasks = done(evaluated(folder, tmp_path, group, *more), tmp_path)
    assert len(tasks) == count
    for name, task in tasks.items():
        assert (task["samples"], task["skipped"]) == (samples, 0), name
        assert set(task["metrics"]) == metrics, name
        assert all(0 <= x <= 100 for x in task["metrics"].values())
        for record in records(tmp_path, name):
            assert record["evidence"] is None or record["evidence"]["tokens"] > 50


@pytest.mark.filterwarnings("ignore")
def test_the_evidence_is_where_the_answer_is(folder, tmp_path):
    done(evaluated(folder, tmp_path, "longbench_hotpotqa", "--data", folder / "data"), tmp_path)
    found = records(tmp_path, "longbench_hotpotqa")
    assert {each["evidence"]["kind"] for each in found} == {"answer string search"}
    assert all(len(each["evidence"]["spans"]) == 9 for each in found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ruler_makes_as_many_samples_of_each_length_as_asked(folder, tmp_path):
    made = []
    for output in (tmp_path / "once", tmp_path / "again"):
        options = ["--lengths", "600,900", "--samples", 3]
        task = done(evaluated(folder, output, "niah_single_1", *options), output)["niah_single_1"]
        assert task["samples"] == 6 and set(task["metrics"]) == {"600", "900"}
        found = records(output, "niah_single_1")
        assert [each["doc"]["max_length"] for each in found] == [600] * 3 + [900] * 3
        assert all(len(each["evidence"]["spans"]) == 1 for each in found)
        made.append([each["doc"] for each in found])
    assert made[0] == made[1]  # the seed decides, else no run could be resumed
    options = ["--lengths", "600", "--samples", 3, "--seed", 1]
    done(evaluated(folder, tmp_path / "other", "niah_single_1", *options), tmp_path / "other")
    assert [r["doc"] for r in records(tmp_path / "other", "niah_single_1")] != made[0][:3]


@pytest.mark.filterwarnings("ignore")
def test_empty_answers_are_scored_and_counted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(AHNLM, "generate_until", lambda self, requests, *_: ["\n "] * len(requests))
    options = ["--data", folder / "data", "--samples", 3, "--lengths", 16384]
    found = evaluated(folder, tmp_path, "longbench_dureader", "ahn_lveval_cmrc_mixup", *options)
    for task in done(found, tmp_path).values():
        assert (task["empty"], task["samples"], task["metrics"]["score"]) == (3, 3, 0)
    assert found.stdout.count("(3 samples, 3 answered by nothing)") == 2
    write_report([tmp_path], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("nothing but white space, scored as they are: 3 by ahn-DeltaNet.") == 2


BAD = [  # group, files beside or instead of the good ones, what the one line says
    ("infinitebench-qa", {}, "longbook_qa_eng.jsonl in"),
    ("infinitebench-qa", {"longbook_qa_en.jsonl": {"context": "x"}}, "in the benchmark's format"),
    ("longbench-6", {}, "expected dureader.jsonl or"),
    ("longbench_dureader", {"dureader.jsonl": {"answers": ["x"]}}, "in the benchmark's format"),
    (
        "longbench_dureader",
        {"dureader.jsonl": LONGBENCH | {"answers": None}},
        "longbench_dureader: sample 1: expected answers as a non-empty list, got None",
    ),
    (
        "longbench_trec",
        {"trec.jsonl": LONGBENCH},
        "sample 1: expected all_classes as a non-empty list",
    ),
    (
        "infinitebench-qa",
        {"longbook_qa_eng.jsonl": INFINITEBENCH | {"answer": None}},
        "in the benchmark's format",
    ),
    ("lveval", {}, "_16k.jsonl: expected a file of LV-Eval, got none"),
    ("ahn_lveval_cmrc_mixup", {"cmrc_mixup_16k.jsonl": {"input": "x"}}, "line 1: expected context"),
    ("niah_single_2", {}, "PaulGrahamEssays.json: expected a file of RULER, got none"),
    ("niah_single_2", {"PaulGrahamEssays.json": {"essays": 1}}, "expected RULER's essays as text"),
    ("ruler_qa_squad", {}, "squad.json: expected a file of RULER, got none"),
    ("ruler_qa_squad", {"squad.json": {"questions": []}}, "in the benchmark's format"),
    ("ruler_qa_hotpot", {"hotpotqa.json": "not JSON"}, "hotpotqa.json: expected JSON"),
    ("ruler_vt", {}, "lengths: expected at least 4096 tokens, got 900"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "files", "message"), BAD)
def test_missing_data_and_wrong_columns_are_one_line(folder, tmp_path, task, files, message):
    (tmp_path / "nltk_data").symlink_to(folder / "data" / "nltk_data")
    for name, content in files.items():
        if isinstance(content, str):
            (tmp_path / name).write_text(content)
        else:
            write(tmp_path / name, content)
    length = 16384 if "lveval" in task else 900 if task.startswith(("niah", "ruler")) else None
    lengths = ["--lengths", length] if length else []
    found = evaluated(folder, tmp_path / "out", task, "--data", tmp_path, *lengths)
    assert found.exit_code == 2, found.exception
    error = found.stderr.splitlines()[-1]
    assert error.startswith("error: ") and message in error, error
