"""Needles stand where they say, are asked for once each, and stretches of a text add up to it."""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from types import SimpleNamespace

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

import standin
from ahn.embedded.corpus import HELD_OUT
from ahn.evaluation.lm import AHNLM
from ahn.evaluation.runs.suite import FOLDERS, GROUPS
from ahn.evaluation.tasks import TASKS
from ahn.evaluation.tasks.haystack import lines_of as recall_lines
from ahn.evaluation.tasks.needle import task as needle
from ahn.evaluation.tasks.ppl import task as ppl
from ahn.evaluation.tasks.recall import task as recall
from ahn.evaluation.tasks.recall.kinds import KINDS
from ahn.evaluation.texts import STDLIB, named_texts, token_starts
from ahn.facts import forms_of

TEXT = "\n".join(f"def f{i}(x):\n    return x + {i}" for i in range(400))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base with its tokenizer, and a text."""
    path = tmp_path_factory.mktemp("base")
    standin.save_base(path)
    (path / "text.py").write_text(TEXT)
    return path


def needles(folder, **options):
    options = {"lengths": [600, 900], "haystacks": 2, "texts": [str(folder / "text.py")], **options}
    return list(needle.dataset(pretrained=str(folder), **options)["test"])


def test_needles_stand_where_they_say(folder):
    questions = needles(folder, depths=[0, 0.25, 0.5, 1])
    assert len(questions) == 2 * 2 * 4
    for question in questions:
        context, (begin, end) = question["context"], question["evidence"]
        value = question["choices"][question["gold"]]
        asked = context.rsplit("\n", 1)[1]
        assert context[begin:end] == asked + value and context.count(asked + value) == 1
        assert len(set(question["choices"])) == 4
        assert context.startswith(standin.tokenizer().bos_token)
        hay = context[: context.index("\n\n# the secret word")]
        assert begin / len(hay) == pytest.approx(question["depth"], abs=0.12)
        tokens = len(token_starts(standin.tokenizer(), context))
        assert question["tokens"] == tokens <= question["length"] + 60
    longest = [max(q["tokens"] for q in questions if q["length"] == n) for n in (600, 900)]
    assert longest == pytest.approx([600, 900], abs=60)


def test_needles_of_a_haystack_are_read_in_one_pass(folder):
    questions = [q["context"] for q in needles(folder, lengths=[600], haystacks=1)]
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(questions))


def test_the_seed_decides(folder):
    one, same, other = (needles(folder, seed=seed) for seed in (3, 3, 4))
    assert one == same != other


def test_scores_of_a_needle_by_hand():
    doc = {"gold": 1}
    scores = needle.process_results(doc, [(-3.0, False), (-1.0, True), (-2.0, False)])
    assert scores == {"acc": 1.0, "recall": 1.0, "nats": 1.0}
    scores = needle.process_results(doc, [(-0.5, True), (-1.0, False), (-2.0, False)])
    assert scores == {"acc": 0.0, "recall": 0.0, "nats": 1.0}
    assert needle.process_results(doc, [(float("-inf"), False)] * 3) == {}


def test_stretches_add_up_to_the_whole(folder):
    options = {"texts": [str(folder / "text.py")], "pretrained": str(folder)}
    stretches = list(ppl.dataset(length=1000, documents=1, **options)["test"])
    assert len(stretches) > 4
    whole = "".join(stretch["continuation"] for stretch in stretches)
    assert TEXT.startswith(whole)
    assert sum(stretch["bytes"] for stretch in stretches) == len(whole.encode())
    for before, after in itertools.pairwise(stretches):
        assert after["context"] == before["context"] + before["continuation"]
        assert after["first"] == before["last"]
    model = AHNLM(standin.load("GatedDeltaNet")[0], tokenizer=copy.deepcopy(standin.tokenizer()))
    pairs = [(s["context"], s["continuation"]) for s in stretches]
    lengths = []
    model.model.get_decoder().register_forward_hook(
        lambda *call: lengths.append(call[2][0].shape[1])
    )
    scores = model.loglikelihood([SimpleNamespace(args=pair) for pair in pairs], True)
    assert sum(lengths) == stretches[-1]["last"]  # each token once, but the last
    total = model.loglikelihood_rolling([SimpleNamespace(args=(whole,))], True)[0]
    assert sum(nats for nats, _ in scores) == pytest.approx(total, rel=1e-5)
    nats, size = ppl.process_results(stretches[0], [scores[0]])["nats_per_token"]
    assert (nats, size) == (-scores[0][0], stretches[0]["last"])


def test_documents_are_the_first_of_each_text_then_the_second(folder):
    (folder / "short.py").write_text(TEXT[: len(TEXT) // 4])
    options = {"texts": [str(folder / "text.py"), str(folder / "short.py")]}
    found = list(ppl.dataset(length=1000, documents=9, pretrained=str(folder), **options)["test"])
    texts = {}
    for stretch in found:
        texts[stretch["document"]] = texts.get(stretch["document"], "") + stretch["continuation"]
    names = ["text.py", "short.py", *(f"text.py, {i}" for i in range(2, len(texts)))]
    assert list(texts) == names and len(names) > 3
    rest, whole = TEXT, [text for name, text in texts.items() if name.startswith("text.py")]
    for text in whole:  # one after the other, each from the beginning of a line
        at = rest.index(text)
        assert rest[:at].count("\n") <= 1 and (not at or rest[at - 1] == "\n")
        rest = rest[at + len(text) :]
    assert len(rest) < 1.5 * len(text)
    for text in texts.values():
        assert len(token_starts(standin.tokenizer(), text)) in (998, 999, 1000)


def test_pg19_from_files_of_its_own(tmp_path):
    for number, text in (("10", "ten"), ("9", "nine")):
        (tmp_path / "pg19" / "test").mkdir(parents=True, exist_ok=True)
        (tmp_path / "pg19" / "test" / f"{number}.txt").write_text(text)
    assert list(named_texts(["pg19"], str(tmp_path))) == [("pg19/10", "ten"), ("pg19/9", "nine")]
    (tmp_path / "flat" / "pg19").mkdir(parents=True)
    with pytest.raises(ValueError, match="expected PG19's text files, got none"):
        list(named_texts(["pg19"], str(tmp_path / "flat")))
    (tmp_path / "flat" / "pg19" / "1.txt").write_text("one")
    assert list(named_texts(["pg19"], str(tmp_path / "flat"))) == [("pg19/1", "one")]


def test_pg19_is_streamed_from_the_hub_no_further_than_asked(folder, monkeypatch):
    def rows(name, split, streaming):
        assert (name, split, streaming) == ("emozilla/pg19", "test", True)
        yield from ({"text": TEXT} for _ in range(2))
        raise AssertionError("read on")

    monkeypatch.setattr("datasets.load_dataset", rows)
    options = {"texts": ["pg19"], "pretrained": str(folder), "length": 300, "documents": 2}
    assert {s["document"] for s in ppl.dataset(**options)["test"]} == {"pg19/0", "pg19/1"}
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: iter([{"content": TEXT}]))
    with pytest.raises(ValueError, match="pg19: expected emozilla/pg19 on the hub, got: 'text'"):
        ppl.dataset(**options)


@pytest.mark.slow
def test_both_run_in_lm_eval(folder):
    options = {"lengths": [600], "haystacks": 1, "length": 300, "pretrained": str(folder)}
    manager = TaskManager(
        include_path=str(TASKS),
        include_defaults=False,
        metadata={**options, "texts": [str(folder / "text.py")]},
    )
    model = AHNLM(standin.load("GatedDeltaNet")[0], tokenizer=copy.deepcopy(standin.tokenizer()))
    results = simple_evaluate(model, tasks=["ahn_needle", "ahn_ppl"], task_manager=manager)
    needles = results["results"]["ahn_needle"]
    assert 0 <= needles["acc,none"] <= 1 and needles["nats,none"] > 0
    assert results["results"]["ahn_ppl"]["bits_per_byte,none"] > 0


def test_texts_by_name(tmp_path):
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.txt").write_text("c")
    assert list(named_texts([str(tmp_path)])) == [("a/c.txt", "c"), ("b.txt", "b")]
    found = dict(named_texts(["stdlib:argparse"]))
    assert "class ArgumentParser" in found["argparse"]


@pytest.mark.parametrize("task", [needle, ppl])
def test_default_texts_are_none_the_embedded_model_was_trained_on(task):
    for name in inspect.signature(task.dataset).parameters["texts"].default:
        assert name.removeprefix(STDLIB) in HELD_OUT


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (needle, {"lengths": [100000]}, "texts: expected at least [0-9]+ tokens, got"),
        (needle, {"lengths": [10]}, "lengths: expected [0-9]+ more tokens"),
        (needle, {"depths": [0.5]}, "depths: expected two or more"),
        (needle, {"depths": [0.5, 2]}, "depths: expected two or more"),
        (needle, {"haystacks": 0}, "haystacks: expected at least 1, got 0"),
        (needle, {"texts": ["/no/such/file"]}, "/no/such/file: expected a text"),
        (needle, {"texts": ["stdlib:nothing"]}, "stdlib:nothing: expected its source"),
        (needle, {"pretrained": None}, "tokenizer: expected"),
        (ppl, {"length": 100000}, "texts: expected one of 100000 tokens, got"),
        (ppl, {"length": 1}, "expected at least 2, 1, got 1"),
    ],
)
def test_what_cannot_be_made_is_refused(folder, task, options, message):
    options = {"texts": [str(folder / "text.py")], "pretrained": str(folder), **options}
    with pytest.raises(ValueError, match=message):
        task.dataset(**options)


def questions(folder, kind, **options):
    options = {"lengths": [1500], "haystacks": 2, "texts": [str(folder / "text.py")], **options}
    return list(recall.dataset(kind, pretrained=str(folder), **options)["test"])


@pytest.fixture(scope="module")
def lines(folder):
    """A text of lines with words that nothing marks."""
    words = ("one", "two", "six", "ten", "red", "old", "sea", "sun")
    path = folder / "lines.txt"
    path.write_text("\n".join(f"{a} {b} {c} and then {c}{b} {a}{a} {b}" for a in words
                              for b in words for c in words))  # fmt: skip
    return {"texts": [str(path)], "depths": [0.1, 0.5, 0.9]}


@pytest.mark.parametrize("language", ["code", "en"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_was_said_before_and_the_right_value_is_first(folder, lines, kind, language):
    asked = questions(folder, kind, language=language, **lines)
    assert len(asked) == 2 * 3
    for question in asked:
        context, (begin, end) = question["context"], question["evidence"]
        value = question["choices"][0].strip()
        assert value in context[begin:end] and end < len(context) - 1
        assert question["gold"] == 0 and len(set(question["choices"])) == len(question["choices"])
        assert context.startswith(standin.tokenizer().bos_token)
        hay = context[: context.index("\n\n")]
        assert begin / len(hay) == pytest.approx(question["depth"], abs=0.15)
    contexts = [q["context"] for q in asked if q["haystack"] == 0]
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(contexts))


def test_of_a_changed_fact_the_newer_value_stands_later(folder, lines):
    for question in questions(folder, "changed", **lines):
        newer, older = (x.strip() for x in question["choices"])
        begin, end = question["evidence"]
        line = question["context"][begin:end]
        assert 0 <= question["context"].index(line.replace(newer, older)) < begin


def test_a_chained_question_needs_both_facts(folder, lines):
    for question in questions(folder, "chained", **lines):
        begin, end = question["evidence"]
        second = question["context"][begin:end]
        first = question["context"].rsplit("\n", 1)[1]
        a = first.removeprefix("# the secret word of what ").split()[0]
        b = second.removeprefix("# the secret word of ").split()[0]
        assert f"# {a} -> {b}\n" in question["context"][:begin]


def test_a_chat_asks_in_turns_and_needs_a_template(folder, lines):
    with pytest.raises(ValueError, match="tokenizer: expected a chat template for this task"):
        questions(folder, "single", chat=True, **lines)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            recall, "task_tokenizer", lambda *_: SimpleNamespace(
                bos_token=None, chat_template=template,
                apply_chat_template=lambda messages, tokenize: "".join(
                    f"<{m['role']}>{m['content']}" for m in messages),
            ))  # fmt: skip
        encoder = standin.tokenizer()
        patch.setattr(recall, "lines_of", lambda _, text: recall_lines(encoder, text))
        patch.setattr(recall, "token_starts", lambda _, text: token_starts(encoder, text))
        asked = questions(folder, "single", chat=True, language="en", haystacks=1, **lines)
    assert asked[0]["context"].startswith("<user>")
    for turns, question in enumerate(asked, 1):
        assert (
            question["context"].count("<assistant>") == question["context"].count("<user>") == turns
        )
        assert question["context"].rsplit("<assistant>", 1)[1]


def test_forms_of_tests_and_of_training_are_not_the_same(folder, lines):
    text = "".join(q["context"] for q in questions(folder, "single", language="en", **lines))
    shapes = [re.sub(r"{\w+}", "@", form.stated) for form in forms_of(["en"])]
    worded = [x for x in shapes if re.search("[a-z]", x)]
    found = [x for x in worded if re.search(re.escape(x).replace("@", r"\w+"), text)]
    assert not found
    assert re.search(r"the secret code of \w+ is|opens the door of", text)


@pytest.mark.parametrize("name", ["recall", "recall-chat", "ruler-local"])
def test_groups_name_tasks_that_are_there(name):
    manager = TaskManager(include_path=[str(TASKS), *FOLDERS], include_defaults=False)
    assert set(GROUPS[name]) <= set(manager.task_index)
