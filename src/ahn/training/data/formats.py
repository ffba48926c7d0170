"""Samples of every known format become a conversation, a prompt with completion, or text."""

from __future__ import annotations

import json
from typing import Any

from ahn.training.data.sources import Source

ROLES = {  # ShareGPT's roles, and those of chat templates
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
}
TAG_ROLES = {  # LLaMA-Factory's tags, and the roles they stand for
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}
CHATQA = ("question", "answer")
SPEAKER, REPLY = "User: ", "Assistant:"  # a question of ChatQA2 may start and end with them
Sample = dict[str, Any]


def standardized(row: Sample, source: Source, text_column: str = "text") -> Sample:
    """A sample of any known format, in one of three forms.

    Known formats are TRL's (`messages`, `conversations`, `prompt` and `completion`, `text`),
    LLaMA-Factory's (`alpaca`, `sharegpt`) and ChatQA2's (`chatqa`: `question`, `answer`). The
    registry names the format, or the columns tell it.

    Returns:
        `{"messages": [...], "tools": ...}`, `{"prompt": ..., "completion": ...}` or
        `{"text": ...}`.

    Raises ValueError naming the source, the columns expected and those it has.
    """
    if source.formatting == "alpaca" or (source.formatting is None and "instruction" in row):
        return _alpaca(row, source)
    if source.formatting == "sharegpt":
        return _sharegpt(row, source)
    if source.formatting == "chatqa" or (source.formatting is None and {*CHATQA} <= {*row}):
        return _chatqa(row, source)
    for key in ("messages", "conversations"):
        if isinstance(row.get(key), list):
            return _conversation(row, Source(source.name, source.path, columns={"messages": key}))
    if isinstance(row.get("completion"), list) and isinstance(row.get("prompt"), list):
        return {"messages": _messages([*row["prompt"], *row["completion"]], source, {})}
    if isinstance(row.get("completion"), str) and isinstance(row.get("prompt"), str):
        return {"prompt": row["prompt"], "completion": row["completion"]}
    if isinstance(row.get(text_column), str):
        return {"text": row[text_column]}
    raise ValueError(
        f"{source.name}: expected a column {text_column} (--text_column), messages, conversations, "
        f"instruction, prompt and completion, or question and answer, got {_kinds(row)}"
    )


def _kinds(row: Sample) -> str:
    """Columns and their types, for messages."""
    return ", ".join(f"{name} ({type(value).__name__})" for name, value in sorted(row.items()))


def _alpaca(row: Sample, source: Source) -> Sample:
    """A conversation from instruction, input, output, system prompt and history."""
    names = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    names = {**names, "history": "history", **source.columns}
    for needed in ("prompt", "response"):
        if not isinstance(row.get(names[needed]), str):
            raise ValueError(
                f"{source.name}: expected a column {names[needed]} (str), got {_kinds(row)}"
            )
    messages = []
    if row.get(names["system"]):
        messages.append({"role": "system", "content": row[names["system"]]})
    for question, answer in row.get(names["history"]) or []:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    question = "\n".join(filter(None, (row[names["prompt"]], row.get(names["query"]))))
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": row[names["response"]]})
    return {"messages": messages}


def _chatqa(row: Sample, source: Source) -> Sample:
    """A conversation from the document, the question and the first answer.

    The document is a column, or it is part of the question.
    """
    question, answer = (row.get(name) for name in CHATQA)
    answer = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError(f"{source.name}: expected a question and an answer, got {_kinds(row)}")
    question = question.strip().removeprefix(SPEAKER).removesuffix(REPLY).strip()
    text = "\n\n".join(filter(None, (row.get("sub-paragraphs"), question)))
    return {
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    }


def _sharegpt(row: Sample, source: Source) -> Sample:
    key = source.columns.get("messages", "conversations")
    if not isinstance(row.get(key), list):
        raise ValueError(f"{source.name}: expected a column {key} (list), got {_kinds(row)}")
    return _conversation(row, source)


def _conversation(row: Sample, source: Source) -> Sample:
    key = source.columns.get("messages", "conversations")
    messages = _messages(row[key], source, source.tags)
    if system := row.get(source.columns.get("system", "system")):
        messages.insert(0, {"role": "system", "content": system})
    tools = row.get(source.columns.get("tools", "tools"))
    tools = json.loads(tools) if isinstance(tools, str) and tools else tools
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _messages(messages: list[Sample], source: Source, tags: dict[str, str]) -> list[Sample]:
    """Messages with `role` and `content`; their keys are the tags' or those in common use."""
    roles = {**ROLES, **{value: TAG_ROLES[tag] for tag, value in tags.items() if tag in TAG_ROLES}}
    converted = []
    for message in messages:
        role = message.get(tags.get("role_tag", "from"), message.get("role"))
        content = message.get(tags.get("content_tag", "value"), message.get("content"))
        if role is None or not isinstance(content, str):
            raise ValueError(
                f"{source.name}: expected messages with role and content, got {_kinds(message)}"
            )
        converted.append({"role": roles.get(role, role), "content": content})
    return converted
