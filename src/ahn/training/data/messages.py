"""Messages of every known format become those of chat templates: roles, calls, tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
FUNCTION = "function_call"  # whose content is the call, as JSON: ShareGPT's role
ROLES = {  # ShareGPT's roles, and those of OpenAI that have another name in chat templates
    "human": USER,
    "gpt": ASSISTANT,
    "observation": TOOL,
    "function": TOOL,  # OpenAI's first name of it
    "developer": SYSTEM,
}
TAG_ROLES = {  # LLaMA-Factory's tags, and the roles they stand for
    "user_tag": USER,
    "assistant_tag": ASSISTANT,
    "observation_tag": TOOL,
    "function_tag": FUNCTION,
    "system_tag": SYSTEM,
}
REASONING = ("reasoning_content", "reasoning", "thinking")  # what an assistant thought, by any name
NAMES = {"role_tag": "from", "content_tag": "value"}  # ShareGPT's keys
THOUGHT = "</think>"  # ends a thought within a content


def without_nulls(value: Any) -> Any:
    """The same value without keys that are null: Arrow gives every row and struct all keys."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def chat_messages(messages: Sequence[Any], tags: Mapping[str, str]) -> list[Message]:
    """Messages with `role`, `content` and what else they have, such as `tool_calls`.

    Args:
        messages: with the keys and roles of ShareGPT or of OpenAI, nulls left out.
        tags: LLaMA-Factory's, where keys or roles have other names.

    Raises ValueError naming what a message lacks.
    """
    return [_message(message, tags) for message in messages]


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """The messages after this system prompt, unless they begin with one of their own."""
    has_own = bool(messages) and messages[0]["role"] == SYSTEM
    if has_own and not messages[0]["content"]:
        messages, has_own = messages[1:], False  # an empty one is none
    return [{"role": SYSTEM, "content": system}, *messages] if system and not has_own else messages


def chat_tools(tools: Any) -> list[dict[str, Any]]:
    """The tools of a conversation as chat templates take them: `{"type": "function", ...}`.

    Args:
        tools: a list of tools or one, or JSON of that; each may be JSON too, or be unwrapped.
    """
    tools = _parsed(tools, "tools") if isinstance(tools, str) and tools.strip() else tools
    parts = [tools] if isinstance(tools, Mapping) else tools or []
    if not isinstance(parts, list):
        raise ValueError(f"expected tools as a list, got {type(tools).__name__}")
    return [_tool(_parsed(x, "a tool") if isinstance(x, str) else x) for x in parts]


def _message(message: Any, tags: Mapping[str, str]) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(f"expected messages with role and content, got {kind_of(message)}")
    names = {**NAMES, **tags}
    role_key, content_key = (
        names[tag] if names[tag] in message else own
        for tag, own in (("role_tag", "role"), ("content_tag", "content"))
    )
    role, content = message.get(role_key), message.get(content_key)
    tagged = {value: TAG_ROLES[tag] for tag, value in tags.items() if tag in TAG_ROLES}
    rest = {k: v for k, v in message.items() if k not in (role_key, content_key)}
    calls = _calls(rest)
    if content is None and (calls or any(name in rest for name in REASONING)):
        content = ""
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"expected messages with role and content (str), got {kind_of(message)}")
    role = {**ROLES, **tagged}.get(role, role)
    if role == FUNCTION:
        role, (content, calls) = ASSISTANT, _called(content)
    return {**rest, "role": role, "content": content, **({"tool_calls": calls} if calls else {})}


def _calls(rest: dict[str, Any]) -> list[dict[str, Any]]:
    """Take the calls out of a message's other keys."""
    calls = rest.pop("tool_calls", None) or []
    single = rest.pop("function_call", None)  # OpenAI's first form
    if not isinstance(calls, list):
        raise ValueError(f"expected tool_calls as a list, got {type(calls).__name__}")
    return [_call(call) for call in (*calls, *([single] if single else []))]


def _called(content: str) -> tuple[str, list[dict[str, Any]]]:
    """What is said before a call, a thought at most, and the calls of a `function_call`."""
    said, mark, text = content.rpartition(THOUGHT)
    calls = _parsed(text, FUNCTION)
    return said + mark, [_call(x) for x in (calls if isinstance(calls, list) else [calls])]


def _call(call: Any) -> dict[str, Any]:
    """A call of a tool with its arguments as an object, as chat templates take it."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"expected calls with a name and arguments, got {kind_of(call)}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"the arguments of {function['name']}")
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"expected the arguments of {function['name']} as an object, got {kind_of(arguments)}"
        )
    identity = {"id": call["id"]} if "id" in call else {}
    named = {"name": function["name"], "arguments": dict(arguments)}
    return {"type": "function", **identity, "function": named}


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise ValueError(f"expected tools as objects, got {kind_of(tool)}")
    is_wrapped = tool.get("type") == "function" and "function" in tool
    return dict(tool) if is_wrapped else {"type": "function", "function": dict(tool)}


def _parsed(text: str, what: str) -> Any:
    try:
        return without_nulls(json.loads(text))
    except ValueError as error:
        raise ValueError(f"expected {what} as JSON, got {text[:60]!r}") from error


def kind_of(value: Any) -> str:
    """A value's type, with the keys of an object and theirs: one line, for errors."""
    if not isinstance(value, Mapping):
        return type(value).__name__
    shown = {name: name if name.isprintable() else repr(name) for name in sorted(value)}
    return ", ".join(f"{shown[x]} ({type(value[x]).__name__})" for x in shown) or "none"
