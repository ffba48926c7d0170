"""Samples of every known format become a conversation, a prompt with completion, or text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ahn.training.data.messages import (
    ASSISTANT,
    USER,
    chat_messages,
    chat_tools,
    kind_of,
    with_system,
)
from ahn.training.data.messages import without_nulls as _without_nulls
from ahn.training.data.sources import Source

ALPACA = {  # LLaMA-Factory's columns, and their names where a registry names none
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "system": "system",
    "history": "history",
    "tools": "tools",
}
CHATQA = ("question", "answer")
CONVERSATIONS = ("messages", "conversations")
SPEAKER, REPLY = "User: ", "Assistant:"  # a question of ChatQA2 may start and end with them
EMPTY: dict[str, Any] = {"text": ""}  # a sample in which there is nothing
Sample = dict[str, Any]


def standardized(row: Sample, source: Source, text_column: str = "text") -> Sample:
    """A sample of any known format, in one of three forms.

    Known formats are TRL's (`messages`, `conversations`, `prompt` and `completion`, `text`),
    LLaMA-Factory's (`alpaca`, `sharegpt`, `openai`) and ChatQA2's (`chatqa`: `question`, `answer`).
    The registry names the format, or the columns tell it. What is null is not there.

    Returns:
        `{"messages": [...], "tools": [...], "prompt_messages": n}`, where the answers among the
        first n messages are no answers to learn; `{"prompt": ..., "completion": ...}` or
        `{"text": ...}`. A sample in which there is nothing is `EMPTY`.

    Raises ValueError naming the columns expected and those it has, or what a message lacks.
    """
    known = _without_nulls(row)
    form = _form(known, source)
    if form is not None:
        return form(known, row, source)
    if isinstance(known.get("completion"), list) and isinstance(known.get("prompt"), list):
        return _prompted(known)
    if isinstance(known.get("completion"), str) and isinstance(known.get("prompt"), str):
        return {"prompt": known["prompt"], "completion": known["completion"]}
    if isinstance(known.get(text_column), str):
        return {"text": known[text_column]}
    wanted = (text_column, *CONVERSATIONS, "instruction", "output", "completion", *CHATQA)
    if any(name in row and name not in known for name in wanted):
        return EMPTY
    raise ValueError(
        f"expected a column {text_column} (--text_column), messages, conversations, "
        f"instruction, prompt and completion, or question and answer, got {kind_of(row)}"
    )


Form = Callable[[Sample, Sample, Source], Sample]


def _form(known: Sample, source: Source) -> Form | None:
    """How a conversation is made of the columns; None where they are no conversation."""
    if source.formatting is not None:
        return {"alpaca": _alpaca, "chatqa": _chatqa}.get(source.formatting, _messages)
    if "instruction" in known:
        return _alpaca
    if {*CHATQA} <= {*known}:
        return _chatqa
    return _messages if any(isinstance(known.get(key), list) for key in CONVERSATIONS) else None


def _conversation(
    messages: list[dict[str, Any]], known: Sample, names: dict[str, str], prompt_messages: int = 0
) -> Sample:
    """Messages with the system prompt and the tools of their columns."""
    system = known.get(names.get("system", "system"))
    if system is not None and not isinstance(system, str):
        raise ValueError(f"expected a system prompt (str), got {type(system).__name__}")
    tools = chat_tools(known.get(names.get("tools", "tools")))
    whole = with_system(messages, system)
    added = len(whole) - len(messages)
    return {
        "messages": whole,
        "tools": tools,
        "prompt_messages": prompt_messages + added if prompt_messages else 0,
    }


def _alpaca(known: Sample, row: Sample, source: Source) -> Sample:
    """A conversation from instruction, input, output, system prompt and history.

    A registry whose columns name a prompt and no response means plain text.
    """
    names = source.columns or ALPACA
    prompt, response = (_column(row, names.get(x), str) for x in ("prompt", "response"))
    if "prompt" in names and "response" not in names:
        return EMPTY if prompt is None else {"text": prompt}
    messages = []
    history = names.get("history", ALPACA["history"])
    for pair in _column(known, history, list, needed=False) or []:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ValueError("expected a history of questions with answers, got another")
        messages += _pair(*pair)
    query = _column(row, names.get("query"), str, needed=False)
    if response is None or not (prompt or query or messages):
        return EMPTY
    messages += _pair("\n".join(filter(None, (prompt, query))), response)
    return _conversation(chat_messages(messages, {}), known, names)


def _column(row: Sample, name: str | None, kind: type, *, needed: bool = True) -> Any:
    """A column's value, None where it is null; ValueError where there is none such."""
    value = row.get(name) if name else None
    if (needed and name and name not in row) or not (value is None or isinstance(value, kind)):
        raise ValueError(f"expected a column {name} ({kind.__name__}), got {kind_of(row)}")
    return value


def _pair(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": USER, "content": question}, {"role": ASSISTANT, "content": answer}]


def _chatqa(known: Sample, row: Sample, source: Source) -> Sample:
    """A conversation from the document, the question and the first answer.

    The document is a column, or it is part of the question.
    """
    question, answer = (known.get(name) for name in CHATQA)
    answer = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(question, str) or not isinstance(answer, str):
        if any(name in row and row[name] is None for name in CHATQA):
            return EMPTY
        raise ValueError(f"expected a question and an answer, got {kind_of(row)}")
    question = question.strip().removeprefix(SPEAKER).removesuffix(REPLY).strip()
    document = _column(known, "sub-paragraphs", str, needed=False)
    text = "\n\n".join(filter(None, (document, question)))
    return {"messages": _pair(text, answer), "tools": [], "prompt_messages": 0}


def _messages(known: Sample, row: Sample, source: Source) -> Sample:
    """A conversation from a list of messages, with the keys of ShareGPT or of OpenAI."""
    key = source.columns.get("messages", CONVERSATIONS[1])
    if source.formatting is None:
        key = next(key for key in CONVERSATIONS if isinstance(known.get(key), list))
    if not _column(row, key, list):
        return EMPTY
    return _conversation(chat_messages(known[key], source.tags), known, source.columns)


def _prompted(known: Sample) -> Sample:
    """A prompt and a completion, both as messages: the completion alone is learnt."""
    prompt, completion = (chat_messages(known[x], {}) for x in ("prompt", "completion"))
    if not completion:
        return EMPTY
    return _conversation([*prompt, *completion], known, {}, prompt_messages=len(prompt))
