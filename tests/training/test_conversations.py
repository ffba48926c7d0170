"""Conversations: nothing of them is lost, answers alone are learnt, what cannot be is refused."""

from __future__ import annotations

import json

import pytest
from data_files import rows_of, written

from ahn.training.data.cutoff import Turn, shares, within
from ahn.training.data.sources import Source
from ahn.training.data.templates import named_templates
from ahn.training.data.tokens import Encoder, training_template
from ahn.training.losses import IGNORE

pytestmark = pytest.mark.usefixtures("own_cache")
ARGUMENTS = {"city": "Rome", "days": 2}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "forecast", "arguments": ARGUMENTS},
}
TOOL = {"name": "forecast", "description": "To see ahead.", "parameters": {"type": "object"}}
TALK = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}]
WITH_TOOLS = ("qwen", "qwen3", "llama3", "mistral")
FAMILIES = (*WITH_TOOLS, "llama2")


def encoded(tokenizer, row, template="qwen", limit=4096, **source):
    """Text and learnt text of each document of a sample."""
    encoder = Encoder(tokenizer, Source("set", "set", **source),
                      training_template(tokenizer, template), limit)  # fmt: skip
    return [
        (tokenizer.decode(ids), tokenizer.decode([x for x in labels if x != IGNORE]))
        for ids, labels in encoder.documents(row)
    ]


def refused(tokenizer, row, template="qwen", **source):
    with pytest.raises(ValueError, match=r"^set: expected") as caught:
        encoded(tokenizer, row, template, **source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def openai(content="", **function):
    call = {**CALL, "function": {**CALL["function"], **function}}
    return {"messages": [TALK[0], {"role": "assistant", "content": content, "tool_calls": [call]}]}


SHAREGPT_CALL = {"conversations": [
    {"from": "human", "value": "QUESTION"},
    {"from": "function_call", "value": json.dumps(CALL["function"])},
]}  # fmt: skip
FIRST_FORM = {"messages": [TALK[0], {"role": "assistant", "function_call": CALL["function"]}]}


@pytest.mark.parametrize("template", WITH_TOOLS)
@pytest.mark.parametrize(
    "row",
    [openai(), openai(None), openai("WORDS"), openai(arguments=json.dumps(ARGUMENTS)),
     SHAREGPT_CALL, FIRST_FORM],
    ids=["empty", "null", "words", "text", "sharegpt", "function_call"],
)  # fmt: skip
def test_calls_are_learnt_as_the_template_writes_them(tokenizer, template, row):
    ((_, learnt),) = encoded(tokenizer, row, template)
    named = '"parameters"' if template == "llama3" else '"arguments"'
    assert f'"name": "forecast", {named}: {json.dumps(ARGUMENTS)}' in learnt
    assert ("<tool_call>\n" in learnt) is template.startswith("qwen")
    assert ("[TOOL_CALLS] [{" in learnt) is (template == "mistral")


@pytest.mark.parametrize("template", WITH_TOOLS)
def test_tools_and_their_results_are_written(tokenizer, template):
    result = {"role": "tool", "content": "RESULT"}
    for tools in ([TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], TOOL,
                  [{"type": "function", "function": TOOL}]):  # fmt: skip
        row = {"messages": [*openai()["messages"], result, TALK[1]], "tools": tools}
        ((text, learnt),) = encoded(tokenizer, row, template)
        assert "To see ahead." in text and '"type": "function"' in text
        assert "RESULT" in text and "RESULT" not in learnt and "ANSWER" in learnt
        assert ("ipython" in text) is (template == "llama3")
    observed = [*SHAREGPT_CALL["conversations"], {"from": "observation", "value": "RESULT"},
                {"from": "gpt", "value": "ANSWER"}]  # fmt: skip
    row = {"conversations": observed, "tools": json.dumps([TOOL])}
    assert encoded(tokenizer, row, template) == [(text, learnt)]


def test_what_a_template_does_not_write_is_refused(tokenizer):
    thought = [TALK[0], {**TALK[1], "reasoning_content": "THOUGHT"}]
    assert "that writes reasoning_content" in refused(tokenizer, {"messages": thought}, "qwen")
    assert "that writes tools" in refused(tokenizer, {"messages": TALK, "tools": [TOOL]}, "llama2")
    assert "that writes tool_calls" in refused(tokenizer, openai(), "llama2")
    result = [*TALK, {"role": "tool", "content": "RESULT"}, TALK[1]]
    assert "the role 'tool'" in refused(tokenizer, {"messages": result}, "llama2")
    for template in FAMILIES:
        critic = [{"role": "critic", "content": "LOST"}, *TALK]
        assert "the role 'critic'" in refused(tokenizer, {"messages": critic}, template)
    beside = openai("WORDS")  # Llama 3.1's own template leaves out what is said beside a call
    assert "beside tool_calls" in refused(tokenizer, beside, "llama3_1")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_learnt(tokenizer, name):
    row = {"messages": [TALK[0], {**TALK[1], name: "THOUGHT"}]}
    ((_, learnt),) = encoded(tokenizer, row, "qwen3")
    assert learnt.startswith("<think>\nTHOUGHT\n</think>\n\nANSWER")


def test_what_is_null_is_not_there(tmp_path, tokenizer):
    """Arrow gives every row and message all keys of the file."""
    long = "ANSWER " * 9
    rows = [
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": long}]},
        {"conversations": [{"role": "user", "content": "Q"},
                           {"role": "assistant", "content": long}]},
        {"instruction": "Q", "output": long},
        {"text": long},
        {"conversations": [{"role": "user", "content": "Q"},
                           {"role": "assistant", "tool_calls": [CALL]},
                           {"role": "tool", "content": "r", "tool_call_id": "call_1"},
                           {"role": "assistant", "content": long}], "tools": [TOOL]},
        {"prompt": "Q", "completion": long},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": long}]},
    ]  # fmt: skip
    columns = {column for row in rows for column in row}
    keys = {key for row in rows for m in row.get("conversations", ()) for key in m}
    for row in rows:
        row.update({column: row.get(column) for column in columns})
        row["conversations"] = row["conversations"] and [
            {key: m.get(key) for key in sorted(keys)} for m in row["conversations"]
        ]
    got = rows_of(written(tmp_path, rows, "a.parquet"), tokenizer, template="qwen")
    texts = [tokenizer.decode(row["input_ids"]) for row in got]
    assert len(texts) == len(rows) and not any("None" in text for text in texts)
    assert "forecast" in texts[4] and "forecast" not in texts[1]


def test_a_system_prompt_of_its_own_wins_over_the_column(tokenizer):
    for begin in ([{"role": "system", "content": "TAG"}], [{"role": "system", "content": ""}], []):
        ((text, _),) = encoded(tokenizer, {"messages": [*begin, *TALK], "system": "COLUMN"})
        own = bool(begin) and bool(begin[0]["content"])
        assert ("TAG" in text, "COLUMN" in text) == (own, not own)
        assert text.count("<|im_start|>system") == 1


def test_answers_of_a_prompt_are_not_learnt(tokenizer):
    earlier = [TALK[0], {"role": "assistant", "content": "EARLIER"}, TALK[0]]
    for template in FAMILIES:
        row = {"prompt": earlier, "completion": TALK[1:], "system": "SYSTEM"}
        ((text, learnt),) = encoded(tokenizer, row, template)
        assert "EARLIER" in text and "EARLIER" not in learnt and "ANSWER" in learnt


def test_entries_with_a_prompt_alone_are_text(tokenizer):
    source = {"formatting": "alpaca", "columns": {"prompt": "body"}}
    ((text, learnt),) = encoded(tokenizer, {"body": "words", "output": "no"}, **source)
    assert text == learnt == f"words{tokenizer.eos_token}"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "user"}]}, "expected messages with role and content"),
        ({"messages": ["words"]}, "expected messages with role and content, got str"),
        ({"messages": [{"content": "x"}]}, "expected messages with role and content"),
        ({"messages": TALK, "tools": "{broken"}, "expected tools as JSON, got '{broken'"),
        ({"messages": TALK, "tools": "3"}, "expected tools as a list, got int"),
        ({"messages": TALK, "tools": [3]}, "expected tools as objects, got int"),
        ({"messages": TALK, "system": ["x"]}, "expected a system prompt (str), got list"),
        (openai(arguments="{broken"), "expected the arguments of forecast as JSON"),
        (openai(arguments=[3]), "expected the arguments of forecast as an object, got list"),
        (openai(name=None), "expected calls with a name and arguments"),
        ({"messages": [TALK[0], {**TALK[1], "tool_calls": "x"}]}, "expected tool_calls as a list"),
        ({"conversations": [{"from": "human", "value": "x"},
                            {"from": "function_call", "value": "look"}]}, "function_call as JSON"),
        ({"instruction": "x", "output": 3}, "expected a column output (str)"),
        ({"instruction": "x", "output": "y", "history": [["z"]]}, "a history of questions"),
        ({"instruction": "x"}, "expected a column output (str)"),
        ({"other": "x"}, "expected a column text (--text_column), messages"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_sample_is_said(tokenizer, row, said):
    assert said.removeprefix("expected ") in refused(tokenizer, row)


def test_a_sample_is_named_by_its_number(tmp_path, tokenizer):
    rows = [{"messages": TALK}] * 70 + [{"messages": [{"role": "critic", "content": "x"}]}]
    for streaming in (False, True):
        options = {"filter_len": 1, "streaming": streaming, "template": "qwen"}
        with pytest.raises(ValueError, match=r"a.jsonl: sample 71: expected a chat template that"):
            rows_of(written(tmp_path, rows, "a.jsonl"), tokenizer, **options)


@pytest.mark.parametrize("template", FAMILIES)
@pytest.mark.parametrize("limit", [60, 120, 400])
def test_a_prompt_that_is_too_long_is_shortened_and_its_answer_kept(tokenizer, template, limit):
    row = {"instruction": "long question " * 300, "output": "ANSWER"}
    ((text, learnt),) = encoded(tokenizer, row, template, limit)
    assert len(tokenizer(text)["input_ids"]) <= limit + 2  # the text need not come back as it was
    ((whole, answer),) = encoded(tokenizer, row, template, 4096)
    assert learnt == answer and text.endswith(answer) and whole.startswith(text[:9])
    ((_, learnt),) = encoded(
        tokenizer, {"prompt": "long\n" * 999, "completion": "ANSWER"}, limit=99
    )
    assert learnt == f"ANSWER{tokenizer.eos_token}"


@pytest.mark.parametrize(
    ("prompt", "answer", "room", "kept"),
    [
        (10, 10, 100, (10, 10)),
        (1000, 10, 100, (90, 10)),  # the answer is below half of the room
        (10, 1000, 100, (10, 90)),  # the prompt is
        (300, 100, 100, (75, 25)),  # neither is
        (1000, 50, 100, (96, 4)),  # 100 * 50 / 1050
        (5, 0, 3, (3, 0)),
        (0, 5, 3, (0, 3)),
    ],
)
def test_shares_of_the_room(prompt, answer, room, kept):
    assert shares(prompt, answer, room) == kept


def test_each_turn_gets_what_the_turns_before_it_left():
    turns = [Turn([1] * 4, [2] * 4), Turn([3] * 90, [4] * 2, is_learnt=False), Turn([5], [6])]
    ids, labels, cut = within(turns, 20)
    assert ids == [1] * 4 + [2] * 4 + [3] * 10 + [4] * 2
    assert labels == [IGNORE] * 4 + [2] * 4 + [IGNORE] * 12
    assert cut == 90 - 10 + 2


UNMARKED = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETFUL = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}"


def test_a_template_without_marks_is_read_by_its_prefixes(tmp_path, tokenizer):
    (tmp_path / "own.jinja").write_text(UNMARKED)
    row = {"messages": [*TALK, TALK[0], {"role": "assistant", "content": "LAST"}]}
    ((text, learnt),) = encoded(tokenizer, row, str(tmp_path / "own.jinja"))
    end = tokenizer.eos_token
    assert text == f"{end}[user]QUESTION[assistant]ANSWER{end}[user]QUESTION[assistant]LAST{end}"
    assert learnt == f"ANSWER{end}LAST{end}"
    (tmp_path / "forgetful.jinja").write_text(FORGETFUL)
    with pytest.raises(ValueError, match=r"expected .% generation %. marks around answers, or a"):
        training_template(tokenizer, str(tmp_path / "forgetful.jinja"))


def test_templates_have_names(tokenizer):
    assert {*FAMILIES, "qwen2_5", "phi3", "gemma", "llama3_1"} <= named_templates().keys()
    for name in FAMILIES:
        ((text, learnt),) = encoded(tokenizer, {"messages": TALK}, name)
        assert "QUESTION" in text and "QUESTION" not in learnt and "ANSWER" in learnt
